"""Which keys a later query may still see: what a cache must keep."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .chosen import ChosenBlocks
from .hashed import Hashed
from .pattern import Pattern, Within
from .terms import Chunked, Dilated, Global, Sinks, Strided, Summaries, Window


def live_mask(pattern: Pattern, n_keys: int) -> NDArray[np.bool_]:
    """For each of the first `n_keys` keys, whether a causal query at position `n_keys` or later may still see it.

    A window of W keeps the last W - 1; a chunk, those of the chunk that is not complete; sinks, strides and global
    positions, their columns. Global queries still to come look at every key, and random and chosen blocks may be named by any
    later query: they keep all. A term cut to a window keeps nothing outside it.

    Raises:
        ValueError: the pattern lists positions for several examples.

    Cost: O(n_keys) bytes and time for each term.

    >>> live_mask(Window(3) | Sinks(1), 6).nonzero()[0].tolist()
    [0, 4, 5]
    """
    keep = np.zeros(n_keys, dtype=bool)
    for cut in pattern.terms:
        if isinstance(cut, Within):
            _mark(keep, cut.term, cut.limit.left)
        else:
            _mark(keep, cut, None)
    return keep


def _mark(keep: np.ndarray, term: Pattern, limit: int | None) -> None:
    """Mark the keys that a later query may see through one term, no further back than `limit` keys from itself."""
    n = len(keep)

    def first(query: int) -> int:
        return 0 if limit is None else max(0, min(n, query - limit + 1))

    match term:
        case Window():
            keep[max(first(n), n - term.left + 1) :] = True
        case Chunked():
            keep[max(first(n), n - n % term.size) :] = True
        case Sinks():
            keep[first(n) : term.n] = True
        case Strided():
            query = n if term.rows == "all" else n + (term.offset - n) % term.stride
            columns = np.arange(term.offset, n, term.stride)
            keep[columns[columns >= first(query)]] = True
        case Dilated():
            # A key's next query stands a multiple of the dilation after it; the greatest multiple allowed decides.
            reach = min(r for r in (term.window and term.window * term.dilation, limit, n + term.dilation) if r)
            keep[max(0, n - (reach - 1) // term.dilation * term.dilation) :] = True
        case Global():
            columns = np.array([p for p in term.shared if first(n) <= p < n], dtype=np.int64)
            keep[columns] = True
            later = [p for p in term.shared if p >= n]
            if later:
                keep[first(later[0]) :] = True
        case Summaries():
            pass
        case ChosenBlocks() | Hashed():
            keep[:] = True  # blocks and ranks are counted from the first key
        case _:
            keep[first(n) :] = True
