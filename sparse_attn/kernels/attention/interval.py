"""Helpers in Triton: where a query's interval of keys begins and ends, and the same from a key's side.

An interval is a window of `left` keys up to the query's own and `right` after it, in a sequence of n_keys; its hull with
the query's chunks (each cut to limits of its own), where the pattern has them. Low and high never decrease from one query
to the next, which is what lets a tile's first and last row bound the others. Full rows are the exception: their
intervals are widened to what they see. All positions are 32-bit; limits stand in `parameters` (`Geometry.parameters`).
"""

import triton
import triton.language as tl


@triton.jit
def interval_bounds(i, n_keys, left, right, parameters, CHUNKS: tl.constexpr):
    """First key and end of the interval of a query position (or of a tensor of them)."""
    low = tl.maximum(i - left + 1, 0)
    high = tl.minimum(i + right + 1, n_keys)
    for c in tl.static_range(CHUNKS):
        size = tl.load(parameters + 3 * c)
        start = i // size * size
        low = tl.minimum(low, tl.maximum(start, i - tl.load(parameters + 3 * c + 1) + 1))
        ahead = tl.minimum(start + size, i + tl.load(parameters + 3 * c + 2) + 1)
        high = tl.maximum(high, tl.minimum(ahead, n_keys))
    return low, high


@triton.jit
def query_bounds(j, first, n_keys, left, right, parameters, CHUNKS: tl.constexpr):
    """First query position and end of those that see a key position; queries stand at first .. n_keys - 1."""
    low = tl.maximum(j - right, first)
    high = tl.minimum(j + left, n_keys)
    for c in tl.static_range(CHUNKS):
        size = tl.load(parameters + 3 * c)
        start = j // size * size
        back = tl.maximum(start, j - tl.load(parameters + 3 * c + 2))
        low = tl.minimum(low, tl.maximum(back, first))
        ahead = tl.minimum(start + size, j + tl.load(parameters + 3 * c + 1))
        high = tl.maximum(high, tl.minimum(ahead, n_keys))
    return low, high


@triton.jit
def row_bounds(
    i, n_keys, left, right, parameters, row_bits, at, inside,
    HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """First key and end of what the queries at positions i, rows `at` of q, see in one run; the same position twice if nothing.

    `row_bits` tells by row of q in which groups it is a full row; its limits widen the run.
    """
    if HAS_INTERVAL:
        low, high = interval_bounds(i, n_keys, left, right, parameters, CHUNKS)
    else:
        low, high = i, i
    if ROWS > 0:
        bits = tl.load(row_bits + at, mask=inside, other=0)
        for g in tl.static_range(ROWS):
            limits = parameters + 3 * CHUNKS + 2 * g
            own = ((bits >> g) & 1) == 1
            low = tl.where(own, tl.minimum(low, tl.maximum(i - tl.load(limits) + 1, 0)), low)
            high = tl.where(own, tl.maximum(high, tl.minimum(i + tl.load(limits + 1) + 1, n_keys)), high)
    return low, high


@triton.jit
def tile_bounds(
    first, stop, low, high, inside, n_keys, left, right, parameters,
    HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Of the runs low .. high of queries first .. stop: the lowest and highest low, the lowest and highest high."""
    if ROWS > 0:
        lowest, highest_low = tl.min(tl.where(inside, low, n_keys)), tl.max(tl.where(inside, low, 0))
        lowest_high, highest = tl.min(tl.where(inside, high, n_keys)), tl.max(tl.where(inside, high, 0))
    elif HAS_INTERVAL:
        lowest, lowest_high = interval_bounds(first, n_keys, left, right, parameters, CHUNKS)
        highest_low, highest = interval_bounds(stop - 1, n_keys, left, right, parameters, CHUNKS)
    else:
        lowest, highest_low, lowest_high, highest = first, first, first, first
    return lowest, highest_low, lowest_high, highest


@triton.jit
def tiles_beside_interval(
    begin, end, low, high, inside, n_keys, residue, step, HAS_INTERVAL: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """The tiles of a dilated pass that do not lie in the interval of all rows.

    Returns where the tiles before it end, where those after it begin (both on the pass's grid), and how many come before.
    """
    skip, resume = end, end
    if HAS_INTERVAL:
        inner_low, inner_high = tl.max(tl.where(inside, low, 0)), tl.min(tl.where(inside, high, n_keys))
        skip = tl.maximum((inner_low - residue + step - 1) // step, begin)
        skip = tl.minimum(begin + (skip - begin + BLOCK_N - 1) // BLOCK_N * BLOCK_N, end)
        resume = tl.minimum(tl.maximum((inner_high - residue + step - 1) // step, skip), end)
    return skip, resume, (skip - begin + BLOCK_N - 1) // BLOCK_N
