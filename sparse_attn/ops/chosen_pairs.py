"""How many query-key pairs an attention call with chosen blocks computes, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from ..patterns import Pattern, Sinks
from ..patterns.chosen import split_choice
from ..patterns.documents import split_documents
from ..patterns.layout import Groups
from ..patterns.pattern import Within


def chosen_pairs(
    selected: Int[Tensor, "*B N H K"],
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    *,
    cu_seqlens_q: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
) -> list[int]:
    """Pairs that causal attention computes with these chosen blocks, for each of the H heads, summed over the batch.

    Args:
        selected: As `attention` takes it; a document's rows follow those of the document before.
        pattern: With one term that chooses blocks.
        n_queries, n_keys: T and S; of packed documents, all tokens.
        cu_seqlens_q, cu_seqlens_k: Boundaries of packed documents.

    A chosen key that the pattern's windows, chunks or sinks name counts once. One that another static term names counts
    twice: then the number is an upper bound.
    Cost: O(T * S / block) once for each pattern and lengths, O(N H K) for each call.
    """
    choice = split_choice(pattern)
    if choice is None:
        raise ValueError(f"pattern has no term that chooses blocks, got {pattern!r}")
    rows = selected if selected.dim() == 4 else selected[None]
    static, first, total = 0, 0, [0] * rows.shape[2]
    for document in split_documents(n_queries, n_keys, cu_seqlens_q, cu_seqlens_k):
        lengths = document.n_queries, document.n_keys
        tiles = choice.term.tiles(*lengths)
        if not tiles:
            continue
        own = rows[:, first : first + tiles].long()
        first += tiles
        static += 0 if choice.static is None else _static_pairs(choice.static, *lengths)
        table = torch.from_numpy(_block_pairs(pattern, *lengths)).to(own.device)  # [tiles, blocks]
        named = (own >= 0) & (own < table.shape[1])
        counts = table[torch.arange(tiles, device=own.device)[:, None, None], own.clamp(0, table.shape[1] - 1)]
        found = (counts * named).sum((0, 1, 3)).tolist()
        total = [a + b for a, b in zip(total, found, strict=True)]
    return [count + static * rows.shape[0] for count in total]


@lru_cache(maxsize=64)
def _static_pairs(pattern: Pattern, n_queries: int, n_keys: int) -> int:
    return pattern.pairs(n_queries, n_keys)


@lru_cache(maxsize=8)  # the layers of a model ask for the same few
def _block_pairs(pattern: Pattern, n_queries: int, n_keys: int) -> NDArray[np.int64]:
    """Pairs between each tile's queries and each block's keys that only the choice names, ``[tiles, blocks]``."""
    choice = split_choice(pattern)
    assert choice is not None
    term, static = choice.term, choice.static
    start = np.arange(-(-n_keys // term.block)) * term.block
    stop = np.minimum(start + term.block, n_keys)
    interval = None if static is None else Groups(static, True).interval
    sinks = _sinks(static)
    first = n_keys - n_queries
    table = np.zeros((term.tiles(n_queries, n_keys), len(start)), dtype=np.int64)
    for tile in range(len(table)):
        begin = (first // term.rows + tile) * term.rows
        i = np.arange(max(begin, first), min(begin + term.rows, n_keys))[:, None]
        low = np.zeros_like(i) if choice.limit is None else np.maximum(i - choice.limit.left + 1, 0)
        seen = _overlap(start, stop, low, i + 1)
        if interval is not None:
            near, far = interval.bounds(i, n_keys)
            seen -= _overlap(start, stop, np.maximum(near, low), np.minimum(far, i + 1))
        for left, count in sinks:
            bottom = low if left is None else np.maximum(low, i - left + 1)
            top = np.minimum(np.full_like(i, count), i + 1)
            if interval is not None:
                top = np.minimum(top, near)  # of those inside the interval nothing is left to take away
            seen -= _overlap(start, stop, bottom, top)
        table[tile] = seen.sum(0)
    return table


def _sinks(static: Pattern | None) -> list[tuple[int | None, int]]:
    """The cut and number of the widest `Sinks` term; narrower ones lie in it."""
    found = []
    for clause in () if static is None else static.terms:
        term, limit = (clause.term, clause.limit) if isinstance(clause, Within) else (clause, None)
        if isinstance(term, Sinks):
            found.append((None if limit is None else limit.left, term.n))
    return sorted(found, key=lambda cut: (cut[0] is None, cut[1]))[-1:]


def _overlap(
    start: NDArray[np.int64], stop: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Keys of each block [start, stop) that lie in each query's run [low, high)."""
    return np.maximum(np.minimum(stop, high) - np.maximum(start, low), 0)
