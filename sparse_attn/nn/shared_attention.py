"""Self-attention whose keys are its queries: what hashing was made for."""

from typing import Any

import torch
from torch import Tensor

from ..patterns import Pattern
from .attention import SparseSelfAttention


class SharedSelfAttention(SparseSelfAttention):
    """`SparseSelfAttention` with one projection for queries and keys.

    k = q / |q|, before both are turned by position: a token and others like it fall into one bucket of a `Hashed` term.

    With equal directions a query's own key has the largest product. It is read as any other key is, where the original
    leaves it out unless there is no other. Every query head has keys of its own.

    Args:
        dim, heads, pattern, options: As for `SparseSelfAttention`, without `kv_heads`.

    Source: Kitaev et al. 2020, arXiv:2001.04451.

    >>> layer = SharedSelfAttention(64, 4, Window(16) | Hashed(2, 8, chunk=16))
    >>> layer(torch.randn(1, 100, 64)).shape
    torch.Size([1, 100, 64])
    """

    def __init__(self, dim: int, heads: int, pattern: Pattern, **options: Any) -> None:
        if options.get("kv_heads", heads) != heads:
            raise ValueError(
                f"kv_heads must be left out: each of {heads} query heads has its keys, got {options['kv_heads']}"
            )
        super().__init__(dim, heads, pattern, **options)
        del self.k_proj

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (self.q_proj(x), self.v_proj(x)))
        return q, torch.nn.functional.normalize(q, dim=-1), v
