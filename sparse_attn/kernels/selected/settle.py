"""Kernel that settles a choice: what is no block, or was named before in its row, becomes -1; blocks are cut into parts.

    settled[t, h, s * PARTS + p] = selected[t, h, s] * PARTS + p;  times = how often the row names the block

so that the kernels after it trust each number, and meet each block once. A row is short, and is compared with itself entry
by entry.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .places import Places


@triton.jit(do_not_specialize=["n_rows", "n_blocks"])
def settle_kernel(
    selected, settled, times, tile_table, first_blocks, n_rows, n_blocks, n_heads,
    K: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, PACKED: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    slots = tl.arange(0, BLOCK_K)
    inside = rows < n_rows
    at = rows.to(tl.int64) * K
    there = inside[:, None] & (slots < K)[None, :]
    chosen = tl.load(selected + at[:, None] + slots[None, :], mask=there, other=-1)
    if PACKED:
        document = tl.load(tile_table + 2 * (rows // n_heads), mask=inside, other=0)
        begin = tl.load(first_blocks + document, mask=inside, other=0)
        own_blocks = tl.load(first_blocks + document + 1, mask=inside, other=0) - begin
    else:
        own_blocks = tl.full([BLOCK_R], n_blocks, tl.int32)
    chosen = tl.where((chosen >= 0) & (chosen < (own_blocks // PARTS)[:, None]), chosen, -1)
    count = tl.zeros([BLOCK_R, BLOCK_K], tl.int32)
    earlier = count
    for other in range(K):
        same = (chosen == tl.load(selected + at + other, mask=inside, other=-1)[:, None]).to(tl.int32)
        count += same
        earlier += tl.where((slots > other)[None, :], same, 0)
    chosen = tl.where(earlier > 0, -1, chosen)
    for part in tl.static_range(PARTS):
        place = (at * PARTS)[:, None] + (slots * PARTS + part)[None, :]
        tl.store(settled + place, tl.where(chosen >= 0, chosen * PARTS + part, -1), mask=there)
        tl.store(times + place, count.to(tl.int16), mask=there)


class Settled(NamedTuple):
    """A choice that can be trusted.

    Attributes:
        blocks: ``[N, H, slots]`` int32, in blocks of ours, each once in a row; -1: none.
        times: How often the caller named each, int16.
    """

    blocks: Tensor
    times: Tensor


def settle(selected: Tensor, where: Places) -> Settled:
    """The choice ``[N, H, K]`` as the kernels read it; what is no block of its document is left out."""
    n_tiles, n_heads, k = selected.shape
    blocks = torch.empty((n_tiles, n_heads, where.slots), dtype=torch.int32, device=selected.device)
    times = torch.empty_like(blocks, dtype=torch.int16)
    block_k = triton.next_power_of_2(max(k, 2))
    rows = max(1, min(64, 4096 // block_k))
    if blocks.numel():
        settle_kernel[(triton.cdiv(n_tiles * n_heads, rows),)](
            selected.contiguous(), blocks, times, where.tile_table(selected.device), where.first_blocks(selected.device),
            n_tiles * n_heads, where.n_blocks, n_heads,
            K=k, BLOCK_K=block_k, PARTS=where.parts, PACKED=where.where.packed, BLOCK_R=rows,
        )  # fmt: skip
    return Settled(blocks, times)
