"""Self-attention whose keys are its queries: what hashing was made for."""

from typing import Any

import torch
from torch import Tensor

from ..patterns import Pattern
from .attention import SparseSelfAttention


class SharedSelfAttention(SparseSelfAttention):
    """`SparseSelfAttention` with one projection for queries and keys.

    q, v = W_q x, W_v x;  k = q / |q|;  q, k turned by position;  y = W_out attention(q, k, v, pattern)

    A key has its query's direction, so that a token and others like it fall into one bucket of a `Hashed` term. A query's own
    key has the largest product. It is read as any other key is, where the original leaves it out unless there is no other.
    Every query head has keys of its own: Hkv = Hq. A query of zeros has a key of zeros.

    Args:
        dim, heads, pattern: As for `SparseSelfAttention`: hidden states ``[B, T, dim]``, packed ``[T, dim]`` with
            `cu_seqlens`, in the weights' dtype (inside autocast, in its own); the result has their shape.
        options: The other arguments of `SparseSelfAttention`, but for `kv_heads`, which may be `heads` only.

    Attributes:
        q_proj, v_proj, out_proj: As there; there is no `k_proj`.

    Raises:
        ValueError: `kv_heads` other than `heads`, and as `SparseSelfAttention`.
        NotImplementedError: as `SparseSelfAttention`.

    Gradients flow to the shared projection from queries and from keys; none through the choice of buckets.
    Cost: three linear maps where `SparseSelfAttention` has four, and that of `attention` with Hkv = Hq. A cache holds
    Hq / Hkv times what grouped heads need, and with `Hashed` it drops no key.
    Source: Kitaev et al. 2020, arXiv:2001.04451 (shared queries and keys).

    >>> layer = SharedSelfAttention(64, 4, Window(16) | Hashed(2, 8, chunk=16))
    >>> layer(torch.randn(1, 100, 64)).shape
    torch.Size([1, 100, 64])
    """

    def __init__(self, dim: int, heads: int, pattern: Pattern, **options: Any) -> None:
        if options.get("kv_heads") not in (None, heads):
            raise ValueError(
                f"kv_heads must be left out: each of {heads} query heads has its keys, got {options['kv_heads']}"
            )
        super().__init__(dim, heads, pattern, **options)
        del self.k_proj

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (self.q_proj(x), self.v_proj(x)))
        return q, torch.nn.functional.normalize(q, dim=-1), v
