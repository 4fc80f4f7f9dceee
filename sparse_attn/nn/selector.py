"""A selector that learns: blocks compressed to one key and value each, whose attention enters by a gate and chooses."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..ops.anchors import pool_blocks
from ..ops.compressed_attention import compressed_attention
from ..patterns import Pattern, TopBlocks
from ..patterns.chosen import split_choice
from .check_layer import check_shapes


class BlockSelector(nn.Module):
    """Chooses the blocks of a `TopBlocks` term, and learns to.

    c[b] = keys and values of block b, pooled with learned weights
    coarse, selected = compressed_attention(q, c_k, c_v, pattern);   gate[t,h] = sigmoid(x[t] @ W[:,h] + bias[h])
    a layer's output: attention(q, k, v, pattern, selected) + gate * coarse

    A choice has no gradient. The weights that make it do: they are those of the coarse attention, which enters the
    output, so that queries, keys and the pooling learn to look at blocks worth looking at.

    That lets it learn; it learns far quicker with `selection_loss` beside the loss (docs/quality.md): set `taught_at` before
    a layer's forward pass in training over whole causal sequences, and add `lesson()` to the loss after it. Under
    checkpointing, what the backward pass recomputes leaves a lesson behind: take it too, and drop it.

    Args:
        dim: Of the layer's input, from which gates are made.
        heads, kv_heads, head_dim: Of the queries and keys.
        pattern: With a `TopBlocks` term.

    Attributes:
        pooling: ``[Hkv, D]``, the query of learned pooling; zeros at first, which is the mean.
        gate: From the input to one gate for each query head.
        taught_at: Positions ``[B, Q]`` of the queries that teach; None: no lesson.

    Raises:
        ValueError: sizes that do not fit together, a pattern without `TopBlocks`, or tensors that do not fit.

    Cost: that of `compressed_attention`, plus O(S x Hkv x D) for pooling.
    Source: Yuan et al. 2025, arXiv:2502.11089.

    >>> selector = BlockSelector(32, 4, 2, 64, Window(64) | TopBlocks(2, block=32))
    >>> coarse, selected = selector(torch.randn(1, 300, 32), q, *selector.compress(k, v))
    >>> coarse.shape == q.shape
    True
    """

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, pattern: Pattern) -> None:
        super().__init__()
        check_shapes(dim, heads, kv_heads, head_dim)
        choice = split_choice(pattern) if isinstance(pattern, Pattern) else None
        if choice is None or not isinstance(choice.term, TopBlocks):
            raise ValueError(f"pattern must have a TopBlocks term, which says what is chosen, got {pattern!r}")
        self.pattern, self.block = pattern, choice.term.block
        self.pooling = nn.Parameter(torch.zeros(kv_heads, head_dim))
        self.gate = nn.Linear(dim, heads)
        self.taught_at: Tensor | None = None
        self._lesson: Tensor | None = None

    def lesson(self) -> Float[Tensor, ""]:
        """`selection_loss` of the layer's last forward pass at `taught_at`, for the loss; taken once, then forgotten.

        Raises:
            ValueError: no forward pass of the layer in training mode, with gradients and `taught_at` set, since the last time.
        """
        if self._lesson is None:
            raise ValueError("lesson: nothing to take: set taught_at, and call the layer in training mode before each")
        lesson, self._lesson = self._lesson, None
        return lesson

    def __getstate__(self) -> dict[str, Any]:
        """For `copy` and `pickle`: a lesson that was not taken belongs to a graph, which cannot be copied."""
        return {**self.__dict__, "_lesson": None}

    def compress(
        self, k: Float[Tensor, "*B S Hkv D"], v: Float[Tensor, "*B S Hkv D"], *, cu_seqlens: Sequence[int] | None = None
    ) -> tuple[Float[Tensor, "*B blocks Hkv D"], Float[Tensor, "*B blocks Hkv D"]]:
        """One key and value for each block; keys before any rotary embedding."""
        return pool_blocks(k, v, self.block, query=self.pooling, cu_seqlens=cu_seqlens)

    def forward(
        self,
        x: Float[Tensor, "*B T C"],
        q: Float[Tensor, "*B T Hq D"],
        k: Float[Tensor, "*B blocks Hkv D"],
        v: Float[Tensor, "*B blocks Hkv D"],
        *,
        n_keys: int | None = None,
        causal: bool = True,
        cu_seqlens_q: Sequence[int] | None = None,
        cu_seqlens_k: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "*B T Hq D"], Int[Tensor, "*B N Hkv K"]]:
        """The gated coarse attention, to be added to the exact one, and the chosen blocks; k and v are compressed."""
        if not isinstance(x, Tensor) or x.shape != (*q.shape[:-2], self.gate.in_features):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must have shape {(*q.shape[:-2], self.gate.in_features)} ([B,] T, dim), got {got}")
        coarse, selected = compressed_attention(
            q, k, v, self.pattern, n_keys=n_keys, causal=causal, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k
        )  # fmt: skip
        return coarse * torch.sigmoid(self.gate(x))[..., None], selected
