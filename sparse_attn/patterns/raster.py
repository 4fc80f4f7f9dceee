"""A pattern as a coarse picture: how much of each cell every term keeps, at any length.

Cells are filled from the terms' own rule (`keeps`), for every query where that is cheap and for a few queries of each
row of cells where it is not, so that nothing of size T x S exists.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .documents import split_documents
from .pattern import Pattern

PAIR_BUDGET = 1 << 25  # pairs looked at: a second or two, and every pair up to a length of 5,792
_CHUNK = 1 << 20  # pairs looked at at once


@dataclass(frozen=True)
class Raster:
    """A grid of cells over queries (down) and keys (across).

    Attributes:
        shares: ``[terms, rows, columns]``, the share of a cell's pairs that a term keeps and no earlier term keeps.
        dense: ``[rows, columns]``, the share that dense attention keeps: 1, or less where causality cuts the cell.
        terms: Each term's text.
        every_query: False where only some of each row's queries were looked at.
    """

    shares: NDArray[np.float64]
    dense: NDArray[np.float64]
    terms: tuple[str, ...]
    every_query: bool


def rasterize(
    pattern: Pattern,
    n_queries: int,
    n_keys: int | None = None,
    *,
    cells: int = 64,
    causal: bool = True,
    pair_budget: int = PAIR_BUDGET,
) -> Raster:
    """The picture of a pattern, `cells` wide and at most as high.

    Args:
        n_queries, n_keys: T and S; the queries are the last T of S positions.
        cells: Columns; fewer if there are fewer keys.
        pair_budget: Above this many pairs, a few queries of each row stand for the others.

    Raises:
        ValueError: lengths that `mask` refuses, nothing to draw, or a pattern that differs between batch examples.

    Cost: O(min(T x S, pair_budget) x terms) time; memory is constant but for one row of S keys.

    >>> rasterize(Window(2), 4, cells=2).shares[0]
    array([[0.75, 0.  ],
           [0.25, 0.75]])
    """
    (document,) = split_documents(n_queries, n_keys, None, None)
    if document.n_queries < 1 or cells < 1:
        raise ValueError(f"nothing to draw: {n_queries} queries on {cells} cells, both must be at least 1")
    columns = min(cells, document.n_keys)
    rows = max(1, min(columns, document.n_queries, round(columns * document.n_queries / document.n_keys)))
    row_edges = _edges(document.n_queries, rows)
    column_edges = _edges(document.n_keys, columns)
    most = max(1, pair_budget // (rows * document.n_keys))
    counts = np.zeros((len(pattern.terms), rows, columns))
    dense = np.zeros((rows, columns))
    for row, (start, stop) in enumerate(itertools.pairwise(row_edges.tolist())):
        chosen = document.first_position + _spread(start, stop, most)
        widths = np.diff(column_edges) * len(chosen)
        own, all_of_them = _count(pattern, chosen, document.n_keys, column_edges, causal)
        counts[:, row] = own / widths
        dense[row] = all_of_them / widths
    every_query = most >= int(np.diff(row_edges).max())
    return Raster(counts, dense, tuple(map(repr, pattern.terms)), every_query)


def _edges(n: int, parts: int) -> NDArray[np.int64]:
    return np.arange(parts + 1, dtype=np.int64) * n // parts


def _spread(start: int, stop: int, most: int) -> NDArray[np.int64]:
    """All of start .. stop - 1, or one from each of `most` equal parts: near its middle, but off any grid."""
    if stop - start <= most:
        return np.arange(start, stop, dtype=np.int64)
    edges = start + _edges(stop - start, most)
    jitter = np.random.default_rng(start).uniform(0.4, 0.6, most)
    return edges[:-1] + (jitter * np.diff(edges)).astype(np.int64)


def _count(
    pattern: Pattern, positions: NDArray[np.int64], n_keys: int, column_edges: NDArray[np.int64], causal: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kept pairs of some queries by term and column (each pair counts for its first term), and dense attention's."""
    columns = len(column_edges) - 1
    own = np.zeros((len(pattern.terms), columns), dtype=np.int64)
    dense = np.zeros(columns, dtype=np.int64)
    step = max(1, _CHUNK // n_keys)
    j = np.arange(n_keys, dtype=np.int64)[None, :]
    for start in range(0, len(positions), step):
        i = positions[start : start + step, None]
        free = j <= i if causal else np.ones((len(i), n_keys), dtype=bool)
        dense += np.add.reduceat(free.sum(0), column_edges[:-1])
        for index, term in enumerate(pattern.terms):
            kept = term.keeps(i, j, n_keys, causal) & free
            own[index] += np.add.reduceat(kept.sum(0), column_edges[:-1])
            free &= ~kept
    return own, dense
