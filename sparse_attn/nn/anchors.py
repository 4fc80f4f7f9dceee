"""Anchors as a module: learned queries, pooling, and the element that stands before the first block."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.anchors import Anchored, AnchorWeights, read_anchors
from ..ops.boundaries import Lengths
from ..ops.check_sizes import check_size


class AnchorKeys(nn.Module):
    """The extra keys of an `Anchors` term, learned: r queries per KV head that read the blocks before each block.

    Args:
        kv_heads, head_dim: Of the keys.
        r, block: As in ``Anchors(r, block)``.
        pooling: "learned" (starts as the mean) or "mean".
        causal: Row n reads the blocks before block n; if False, all of them.

    Attributes:
        queries: ``[Hkv, R, D]``, drawn from a standard normal distribution, so that anchors start apart.
        initial_logit, initial_k, initial_v: What row 0 consists of, ``[Hkv, R]`` and ``[Hkv, R, D]``; zeros at first. In
            row n it weighs as one block more would whose logit it has.
        pooling: ``[Hkv, D]`` or None.

    Raises:
        ValueError: a size that is no integer of at least 1, a pooling that is none, or keys that do not fit.

    >>> AnchorKeys(2, 64, r=16, block=128)(k, v).extra_k.shape
    torch.Size([1, 3, 16, 2, 64])
    """

    def __init__(
        self, kv_heads: int, head_dim: int, *, r: int, block: int, pooling: str = "learned", causal: bool = True
    ) -> None:
        super().__init__()
        for name, size in (("kv_heads", kv_heads), ("head_dim", head_dim), ("r", r), ("block", block)):
            check_size(name, size)
        if pooling not in ("learned", "mean"):
            raise ValueError(f"pooling must be 'learned' or 'mean', got {pooling!r}")
        if not isinstance(causal, bool):
            raise ValueError(f"causal must be True or False, got {causal!r}")
        self.block = block
        self.causal = causal
        self.queries = nn.Parameter(torch.randn(kv_heads, r, head_dim))
        self.initial_logit = nn.Parameter(torch.zeros(kv_heads, r))
        self.initial_k = nn.Parameter(torch.zeros(kv_heads, r, head_dim))
        self.initial_v = nn.Parameter(torch.zeros(kv_heads, r, head_dim))
        self.pooling = nn.Parameter(torch.zeros(kv_heads, head_dim)) if pooling == "learned" else None

    @property
    def weights(self) -> AnchorWeights:
        return AnchorWeights(self.queries, self.initial_logit, self.initial_k, self.initial_v, self.pooling)

    def forward(
        self,
        k: Float[Tensor, "*B S Hkv D"],
        v: Float[Tensor, "*B S Hkv D"],
        *,
        cu_seqlens: Lengths | None = None,
        implementation: str | None = None,
    ) -> Anchored:
        """Extra keys and values from keys before any rotary embedding; see `ops.read_anchors`."""
        return read_anchors(
            k, v, self.weights, self.block, causal=self.causal, cu_seqlens=cu_seqlens, implementation=implementation
        )
