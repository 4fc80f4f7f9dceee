"""How many pairs a choice of one key block costs a tile of queries, by a table: quick, for the static parts that most have."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from ..patterns import Chunked, Full, Pattern, Sinks, Window
from ..patterns.chosen import Choice, split_choice
from ..patterns.documents import Document
from ..patterns.layout import Groups
from ..patterns.pattern import Within


def has_table(choice: Choice, causal: bool) -> bool:
    """Whether the static part is a run of keys around each query, and sinks: all that the table knows."""
    terms = (
        [clause.term if isinstance(clause, Within) else clause for clause in choice.static.terms]
        if choice.static
        else []
    )
    sinks = sum(isinstance(term, Sinks) for term in terms)
    return causal and sinks <= 1 and all(isinstance(term, Window | Chunked | Full | Sinks) for term in terms)


def pairs_by_table(
    selected: Int[Tensor, "B N H K"], pattern: Pattern, documents: tuple[Document, ...]
) -> Int[Tensor, "B H"]:
    """Pairs of chosen keys that no static term names, for patterns that `has_table` accepts.

    Cost: O(T * S / block) once for each pattern and lengths, O(N H K) for each call.
    """
    choice = split_choice(pattern)
    assert choice is not None
    first, total = 0, torch.zeros(selected.shape[0], selected.shape[2], dtype=torch.int64)
    for document in documents:
        tiles = choice.term.tiles(document.n_queries, document.n_keys)
        if not tiles:
            continue
        own = selected[:, first : first + tiles].long()
        first += tiles
        table = torch.from_numpy(_block_pairs(pattern, document.n_queries, document.n_keys)).to(own.device)
        named = (own >= 0) & (own < table.shape[1])
        counts = table[torch.arange(tiles, device=own.device)[:, None, None], own.clamp(0, table.shape[1] - 1)]
        total += (counts * named).sum((1, 3)).cpu()
    return total


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
    """The cut and number of the `Sinks` term."""
    found = []
    for clause in () if static is None else static.terms:
        term, limit = (clause.term, clause.limit) if isinstance(clause, Within) else (clause, None)
        if isinstance(term, Sinks):
            found.append((None if limit is None else limit.left, term.n))
    return found


def _overlap(
    start: NDArray[np.int64], stop: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Keys of each block [start, stop) that lie in each query's run [low, high)."""
    return np.maximum(np.minimum(stop, high) - np.maximum(start, low), 0)
