"""Kernel that settles a choice: what no block is, or was named before in its row, becomes -1; blocks are cut into parts.

    settled[t, h, s * PARTS + p] = selected[t, h, s] * PARTS + p

so that the kernels after it trust each number. A row is short, and is compared with itself entry by entry.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .places import Places


@triton.jit(do_not_specialize=["n_rows", "n_blocks"])
def settle_kernel(
    selected, settled, tile_table, first_blocks, n_rows, n_blocks, n_heads,
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
    for earlier in range(K - 1):
        named = tl.load(selected + at + earlier, mask=inside, other=-1)
        chosen = tl.where((chosen == named[:, None]) & (slots > earlier)[None, :], -1, chosen)
    for part in tl.static_range(PARTS):
        to = settled + (at * PARTS)[:, None] + (slots * PARTS + part)[None, :]
        tl.store(to, tl.where(chosen >= 0, chosen * PARTS + part, -1), mask=there)


def settle(selected: Tensor, where: Places) -> Tensor:
    """The choice ``[N, H, slots]``, in blocks of ours; entries that are no block of their document, or named twice, are -1."""
    n_tiles, n_heads, k = selected.shape
    settled = torch.empty((n_tiles, n_heads, where.slots), dtype=torch.int32, device=selected.device)
    block_k = triton.next_power_of_2(max(k, 2))
    rows = max(1, min(64, 4096 // block_k))
    if settled.numel():
        settle_kernel[(triton.cdiv(n_tiles * n_heads, rows),)](
            selected.contiguous(), settled, where.tile_table(selected.device), where.first_blocks(selected.device),
            n_tiles * n_heads, where.n_blocks, n_heads,
            K=k, BLOCK_K=block_k, PARTS=where.parts, PACKED=where.where.packed, BLOCK_R=rows,
        )  # fmt: skip
    return settled
