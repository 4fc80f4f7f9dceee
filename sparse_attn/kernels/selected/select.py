"""Kernel that finds the best blocks of each row of scores: a threshold by bisection, then the numbers above it.

Scores are read as integers whose order is that of the numbers (-0 and 0 are equal, NaN is -inf). Of those that are
allowed, the k-th largest is bracketed: lo has at least k at or above it, hi fewer; halving the bracket ends early, when
exactly k are at or above lo, or when lo and hi are neighbours. Then those above lo are taken, and of those equal to it the
ones with the lowest numbers. A row stays in the registers of few warps, so that counting needs no shared memory.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_BLOCKS = 1 << 12  # blocks of a row that registers hold; compiling for more takes minutes
SCORES = 1 << 26  # scores that are held at once


@triton.jit(do_not_specialize=["n_rows", "n_tiles", "n_blocks"])
def select_kernel(
    scores, ranges, chosen, n_rows, n_tiles, n_blocks, n_heads, width,
    ONE_RANGE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    lowest: tl.constexpr = -2147483648
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = rows < n_rows
    b = tl.arange(0, BLOCK_B)
    tile = rows % n_tiles
    limits = ranges + 4 * tile
    if not ONE_RANGE:
        limits += 4 * (rows // n_tiles % n_heads * n_tiles)
    first, stop = tl.load(limits, mask=inside, other=0), tl.load(limits + 1, mask=inside, other=0)
    out_first, out_stop = tl.load(limits + 2, mask=inside, other=0), tl.load(limits + 3, mask=inside, other=0)
    allowed = (b[None, :] >= first[:, None]) & (b[None, :] < tl.minimum(stop, n_blocks)[:, None])
    allowed = allowed & ((b[None, :] < out_first[:, None]) | (b[None, :] >= out_stop[:, None]))
    score = tl.load(scores + (rows.to(tl.int64) * n_blocks)[:, None] + b[None, :], mask=allowed, other=0.0)
    score = tl.where(score == score, score, float("-inf"))
    bits = score.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    order = tl.where(allowed, order, lowest)

    # lo: at least `wanted` at or above; hi: fewer. Every BLOCK_K-th block makes a group, and as many groups as are wanted, and
    # more, have a score as high as the lowest of their best ones.
    wanted = tl.minimum(tl.sum(allowed.to(tl.int32), 1), width)
    lo = tl.min(tl.where(allowed, order, 2147483647), 1)
    if BLOCK_K < BLOCK_B:
        part = tl.arange(0, BLOCK_B // BLOCK_K)[None, :, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, None, :]
        there = (part >= first[:, None, None]) & (part < tl.minimum(stop, n_blocks)[:, None, None])
        there = there & ((part < out_first[:, None, None]) | (part >= out_stop[:, None, None]))
        again = tl.load(scores + (rows.to(tl.int64) * n_blocks)[:, None, None] + part, mask=there, other=float("-inf"))
        bound = tl.min(tl.max(tl.where(again == again, again, float("-inf")), 1), 1).to(tl.int32, bitcast=True)
        lo = tl.maximum(lo, tl.where(bound < 0, -(bound & 0x7FFFFFFF), bound))
    count = tl.sum(((order >= lo[:, None]) & allowed).to(tl.int32), 1)
    hi = tl.max(order, 1) + 1
    middle = (lo & hi) + ((lo ^ hi) >> 1)  # their mean, rounded down, without overflow
    active = (count > wanted) & (middle != lo)
    while tl.max(active.to(tl.int32), 0) > 0:
        above = tl.sum((order >= middle[:, None]).to(tl.int32), 1)
        enough = above >= wanted
        lo = tl.where(active & enough, middle, lo)
        count = tl.where(active & enough, above, count)
        hi = tl.where(active & (enough == 0), middle, hi)
        middle = (lo & hi) + ((lo ^ hi) >> 1)
        active = (count > wanted) & (middle != lo)

    taken = (order >= lo[:, None]) & allowed & (wanted > 0)[:, None]
    if tl.max(count - wanted, 0) > 0:  # of equal scores, the blocks with the lowest numbers
        equal = ((order == lo[:, None]) & allowed).to(tl.int32)
        left = wanted - tl.sum(((order > lo[:, None]) & allowed).to(tl.int32), 1)
        taken = taken & ((equal == 0) | (tl.cumsum(equal, 1) <= left[:, None]))
    place = tl.cumsum(taken.to(tl.int32), 1) - 1
    to = chosen + rows.to(tl.int64) * width
    numbers = b[None, :] + tl.zeros([BLOCK_R, BLOCK_B], tl.int32)
    tl.store(to[:, None] + place, numbers, mask=taken & inside[:, None])
    s = tl.arange(0, BLOCK_K)
    none = tl.full([BLOCK_R, BLOCK_K], -1, tl.int32)
    tl.store(
        to[:, None] + s[None, :], none, mask=(s[None, :] >= wanted[:, None]) & (s < width)[None, :] & inside[:, None]
    )


def select_tiles(
    queries: Tensor, keys: Tensor, ranges: Tensor, width: int, reach: Callable[[int], int], *, ordered: bool = False
) -> Tensor:
    """For each tile of queries the `width` blocks whose features score best: int32 ``[B, tiles, H, width]``.

    Args:
        queries, keys: Features in float32, ``[B, tiles, H, F]`` and ``[B, blocks, H, F]``; a score is their product.
        ranges: As `best_blocks` takes them.
        reach: Of the first so many tiles, the end of the blocks that any of them may choose.
        ordered: The best block first; else the lowest number.

    Scores are held for some tiles at a time, 256 MiB of them.
    """
    batch, n_tiles, n_heads, _ = queries.shape
    chosen = torch.empty((batch, n_tiles, n_heads, width), dtype=torch.int32, device=queries.device)
    by_block = keys.permute(0, 2, 3, 1)
    step = max(1, SCORES // max(1, batch * n_heads * keys.shape[1]))
    for start in range(0, n_tiles, step):
        part = slice(start, min(start + step, n_tiles))
        scores = queries[:, part].transpose(1, 2) @ by_block[..., : max(1, reach(part.stop))]
        best = best_blocks(scores, ranges[:, part], width)
        chosen[:, part] = (best_first(scores, best) if ordered else best).transpose(1, 2)
    return chosen


def best_first(scores: Tensor, chosen: Tensor) -> Tensor:
    """Chosen blocks by their scores, of equal ones (NaN is -inf) the lower number first; -1 stays behind them all."""
    own = scores.gather(-1, chosen.long().clamp(min=0))
    own = torch.where(torch.isnan(own) | (chosen < 0), float("-inf"), own)
    return chosen.gather(-1, own.sort(dim=-1, descending=True, stable=True).indices)


def best_blocks(scores: Tensor, ranges: Tensor, width: int) -> Tensor:
    """The `width` allowed blocks with the highest scores in each row, by number; -1: no more.

    Args:
        scores: ``[B, H, tiles, blocks]`` float32.
        ranges: ``[1 or H, tiles, 4]`` int32: first and end of the blocks that are allowed, first and end of those that are
            not after all.

    Returns:
        int32 ``[B, H, tiles, width]``. Between equal scores the lower number is chosen; NaN scores as -inf.
    """
    batch, n_heads, n_tiles, n_blocks = scores.shape
    chosen = torch.empty((batch, n_heads, n_tiles, width), dtype=torch.int32, device=scores.device)
    n_rows = batch * n_heads * n_tiles
    if n_rows and width:
        block_b = max(32, triton.next_power_of_2(n_blocks))
        rows, warps = max(1, min(32, 1024 // block_b)), max(1, min(16, block_b // 1024))
        select_kernel[(triton.cdiv(n_rows, rows),)](
            scores.contiguous(), ranges.contiguous(), chosen, n_rows, n_tiles, n_blocks, n_heads, width,
            ONE_RANGE=ranges.shape[0] == 1, BLOCK_R=rows, BLOCK_B=block_b,
            BLOCK_K=triton.next_power_of_2(width), num_warps=warps,
        )  # fmt: skip
    return chosen
