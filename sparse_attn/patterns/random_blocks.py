"""The block lists of `Random`, for all query blocks at once: the vectorised twin of `Random.draw`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .terms import Random

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def draw_blocks(term: Random, query_blocks: NDArray[np.int64], n_keys: int, causal: bool) -> NDArray[np.int64]:
    """The key blocks drawn by each query block ``[N]``, as ``[N, <= blocks]``; -1 where fewer could be drawn.

    Floyd's algorithm over SplitMix64, as `Random` documents it.
    """
    available = query_blocks if causal else np.full_like(query_blocks, -(-n_keys // term.block))
    width = min(term.blocks, int(available.max(initial=0)))
    drawn = np.full((len(query_blocks), width), -1, dtype=np.int64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        seeded = _mix(np.full(1, term.seed, dtype=np.uint64) + _GOLDEN)
        keyed = _mix(seeded + query_blocks.astype(np.uint64) + _GOLDEN)
        first = np.maximum(available - term.blocks, 0)
        for r in range(width):
            last = first + r
            live = last < available
            draw = (_mix(keyed + np.uint64(r) + _GOLDEN) % (last + 1).astype(np.uint64)).astype(np.int64)
            taken = (drawn[:, :r] == draw[:, None]).any(axis=1)
            drawn[:, r] = np.where(live, np.where(taken, last, draw), -1)
    return drawn


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
