"""Who chose each block: the transpose of a choice, for a span of queries at a time, in compressed rows.

A map of bytes, ``[H, blocks, span]``, says for each block and query which slot of the query names it (slot + 1; 0: none).
One kernel marks it from the choice and counts; another walks along each of its rows and writes down what it finds, in the
order of the queries. Only counts are added up atomically, in integers, so that every list is the same every time. The map
is O(blocks) a query, as the scores are from which blocks are chosen.

An entry of a list is (query in the span) << 12 | slot.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .places import Places

SLOT_BITS = 12
_FOUND = 1024  # queries that a program of the second kernel looks at together


@triton.jit(do_not_specialize=["first", "stop", "n_blocks"])
def mark_kernel(
    blocks, query_tiles, tile_table, first_blocks, map, counts, first, stop, n_choices, n_blocks, span,
    SLOTS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_Q: tl.constexpr, PACKED: tl.constexpr, BY_TILE: tl.constexpr,
):  # fmt: skip
    choice = tl.program_id(0) % n_choices
    query = first + tl.program_id(0) // n_choices * BLOCK_Q + tl.arange(0, BLOCK_Q)
    slots = tl.arange(0, BLOCK_S)
    inside = query < stop
    tile = query
    if BY_TILE:
        tile = tl.load(query_tiles + query, mask=inside, other=0)
    entries = blocks + ((tile.to(tl.int64) * n_choices + choice) * SLOTS)[:, None] + slots[None, :]
    block = tl.load(entries, mask=inside[:, None] & (slots < SLOTS)[None, :], other=-1)
    live = block >= 0
    if PACKED:
        document = tl.load(tile_table + 2 * tile, mask=inside, other=0)
        block += tl.load(first_blocks + document, mask=inside, other=0)[:, None]
    row = choice * n_blocks + block
    tl.store(
        map + row.to(tl.int64) * span + (query - first)[:, None],
        (slots + 1)[None, :].to(map.dtype.element_ty),
        mask=live,
    )
    tl.atomic_add(counts + row + 1, 1, mask=live, sem="relaxed")


@triton.jit(do_not_specialize=["n_rows"])
def list_kernel(
    map, begins, first_items, entries, items, n_rows, span,
    SLOT_BITS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    at, end = tl.load(begins + row), tl.load(begins + row + 1)
    if at < end:
        item, item_end = tl.load(first_items + row), tl.load(first_items + row + 1)
        for start in range(item, item_end, BLOCK_I):
            number = start + tl.arange(0, BLOCK_I)
            tl.store(items + number, row + 0 * number, mask=number < item_end)
        for start in range(0, span, BLOCK_Q):
            query = start + tl.arange(0, BLOCK_Q)
            slot = tl.load(map + row.to(tl.int64) * span + query, mask=query < span, other=0).to(tl.int32)
            found = (slot > 0).to(tl.int32)
            place = at + tl.cumsum(found, 0) - 1
            tl.store(entries + place, query << SLOT_BITS | (slot - 1), mask=slot > 0)
            at += tl.sum(found)


@triton.jit
def slot_of(rows, slot, choice, query_tiles, inside, n_choices, SLOTS: tl.constexpr, BY_TILE: tl.constexpr):
    """Where a query's slot stands in a settled choice."""
    if BY_TILE:
        rows = tl.load(query_tiles + rows, mask=inside, other=0)
    return (rows.to(tl.int64) * n_choices + choice) * SLOTS + slot


class Lists(NamedTuple):
    """Which queries of a span chose each block; a row is a choosing head's block, ``head * blocks + block``.

    Attributes:
        begins: ``[rows + 1]``, where each row's entries begin.
        entries: (query in the span) << 12 | slot, row by row, in the order of the queries.
        first_items: ``[rows + 1]``, where each row's items begin: an item is up to so many entries of one row.
        items: The row of each item.
        most_items: Items there can be at most; the number of them is known on the device only.
    """

    begins: Tensor
    entries: Tensor
    first_items: Tensor
    items: Tensor
    most_items: int


def lists(blocks: Tensor, where: Places, first: int, stop: int, item: int) -> Lists:
    """The lists of the queries first .. stop, cut into items of so many entries."""
    n_choices, slots = blocks.shape[1:]
    device = blocks.device
    span = -(-(stop - first) // 16) * 16  # so that a row of the map is read several bytes at once
    n_rows = n_choices * where.n_blocks
    query_tiles = where.query_tiles(device)
    marked = torch.zeros((n_rows, span), dtype=torch.uint8 if slots < 256 else torch.int16, device=device)
    counts = torch.zeros(n_rows + 1, dtype=torch.int32, device=device)
    block_s = triton.next_power_of_2(max(slots, 2))
    block_q = max(1, 2048 // block_s)
    mark_kernel[(n_choices * triton.cdiv(stop - first, block_q),)](
        blocks, query_tiles, where.tile_table(device), where.first_blocks(device), marked, counts,
        first, stop, n_choices, where.n_blocks, span,
        SLOTS=slots, BLOCK_S=block_s, BLOCK_Q=block_q, PACKED=where.where.packed, BY_TILE=query_tiles is not None,
    )  # fmt: skip
    begins = counts.cumsum(0, dtype=torch.int32)
    first_items = ((counts + (item - 1)) // item).cumsum(0, dtype=torch.int32)
    most = (stop - first) * n_choices * min(slots, where.n_blocks)
    most_items = most // item + min(n_rows, most)
    entries = torch.empty(most, dtype=torch.int32, device=device)
    items = torch.empty(most_items, dtype=torch.int32, device=device)
    list_kernel[(n_rows,)](
        marked, begins, first_items, entries, items, n_rows, span,
        SLOT_BITS=SLOT_BITS, BLOCK_Q=_FOUND, BLOCK_I=64,
    )  # fmt: skip
    return Lists(begins, entries, first_items, items, most_items)
