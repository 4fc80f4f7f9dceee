"""Attention of one layer whose pattern chooses by coverage: in long prefill it chooses, elsewhere it is dense.

Choosing pays where many queries share an estimate. A decode step has one query, and a short prompt has few keys to leave
out; both attend to all keys that the model itself would let them see. What was spent is counted for each layer and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops import attention, select_blocks, selected_pairs
from ..patterns import Full, Pattern
from ..patterns.chosen import Choice, split_choice
from ..patterns.covering import Covering

SHORT = 8  # tiles: a sequence of no more keys has next to nothing to leave out


@dataclass(frozen=True)
class LayerPairs:
    """Query-key pairs that one layer computed since its pattern was set, prefill and decode, all rows of batches.

    Attributes:
        kept: For each query head.
        dense: Those of the layer without choosing, for one head.
    """

    kept: tuple[int, ...]
    dense: int

    @property
    def share(self) -> float:
        """Of the layer's own pairs, averaged over heads."""
        return sum(self.kept) / (len(self.kept) * self.dense) if self.dense else 1.0


@dataclass(eq=False)
class PairCount:
    """What a layer has spent so far."""

    kept: list[int] = field(default_factory=list)
    dense: int = 0

    def add(self, kept: Sequence[int], dense: int) -> None:
        self.kept = [a + b for a, b in zip(self.kept or [0] * len(kept), kept, strict=True)]
        self.dense += dense


def spent_pairs(model: nn.Module, *, reset: bool = False) -> dict[int, LayerPairs]:
    """The pairs that layers with a covering pattern have computed since `sparsify`, by layer number.

    Args:
        model: A model that `sparsify` changed; layers whose pattern does not choose by coverage are not in the answer.
        reset: Begin to count anew.

    >>> from sparse_attn.hf import sparsify
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, hidden_size=64, num_attention_heads=2, vocab_size=99))
    >>> with torch.no_grad():
    ...     out = sparsify(model.eval(), "auto")(torch.zeros(1, 10, dtype=torch.long))
    >>> spent_pairs(model)  # ten tokens attend densely
    {0: LayerPairs(kept=(55, 55), dense=55)}
    """
    found = {}
    for module in model.modules():
        count = getattr(getattr(module, "sparse_attn", None), "spent", None)
        if isinstance(count, PairCount):
            found[int(module.layer_idx)] = LayerPairs(tuple(count.kept), count.dense)  # type: ignore[arg-type]
            if reset:
                count.kept, count.dense = [], 0
    return dict(sorted(found.items()))


def covering_choice(pattern: Pattern) -> Choice | None:
    """The pattern's choice by coverage; None if it has none."""
    choice = split_choice(pattern)
    return choice if choice is not None and isinstance(choice.term, Covering) else None


def attend_by_coverage(
    q: Float[Tensor, "*B T Hq D"],
    k: Float[Tensor, "*B S Hkv D"],
    v: Float[Tensor, "*B S Hkv D"],
    pattern: Pattern,
    choice: Choice,
    *,
    scaling: float | None,
    bounds: tuple[list[int] | None, list[int] | None],
    implementation: str | None,
    spent: PairCount,
) -> Float[Tensor, "*B T Hq D"]:
    """Attention through a pattern with a covering term; see the module's first lines.

    Args:
        bounds: Boundaries of packed documents, both or neither.

    Raises:
        NotImplementedError: a gradient is asked for.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise NotImplementedError(
            f"{choice.term!r} chooses from all queries of a tile, which training must not read: run the model under "
            "torch.no_grad() or torch.inference_mode(), or train through TopBlocks(k, rows=1)"
        )
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    where: dict[str, Any] = {"cu_seqlens_q": bounds[0], "cu_seqlens_k": bounds[1]}
    lengths = _lengths(q, k, bounds)
    full: Pattern = Full() if choice.limit is None else Full().within(choice.limit)
    if (
        choice.limit is not None and choice.static is not None
    ):  # a cut of the choice alone leaves the static terms whole
        full = choice.static | full
    heads, rows = q.shape[-2], 1 if bounds[0] is not None else q.shape[0]
    dense = rows * sum(full.pairs(*own) for own in lengths)
    if all(n_queries < choice.term.rows or n_keys <= SHORT * choice.term.rows for n_queries, n_keys in lengths):
        spent.add([dense] * heads, dense)
        out = attention(q, k, v, full, scale=scale, implementation=implementation, **where)
    else:
        selected = select_blocks(q, k, pattern, scale=scale, **where)
        counts = selected_pairs(selected, pattern, q.shape[-3], k.shape[-3], **where)
        spent.add(counts.view(-1, heads).sum(0).tolist(), dense)
        out = attention(q, k, v, pattern, scale=scale, selected=selected, implementation=implementation, **where)
    assert isinstance(out, Tensor)
    return out


def _lengths(q: Tensor, k: Tensor, bounds: tuple[list[int] | None, list[int] | None]) -> list[tuple[int, int]]:
    if bounds[0] is None or bounds[1] is None:
        return [(q.shape[-3], k.shape[-3])]
    counts = ([stop - start for start, stop in pairwise(own)] for own in (bounds[0], bounds[1]))
    return list(zip(*counts, strict=True))
