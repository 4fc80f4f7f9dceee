"""Forward kernels where each query chooses for itself: from each block of keys to the queries that chose it.

Queries that choose alone share no keys with their neighbours: walked from the queries, every block would be read anew for
each. So a block's keys and values stay, and the rows of its queries (times the heads that share the choice) are gathered
past them, a tile of m rows at a time. Each (query, slot) gets the output over its block alone and that output's LSE:

    s = log2(e) * scale * q k^T;  t = log2 sum 2^s;  o = 2^(s - t) v

and a second kernel merges the slots of each query: T = log2 sum_slots 2^t, out = sum_slots 2^(t - T) o, LSE = ln(2) * T.

The outputs of all slots are K times the size of the result, so queries are taken in spans of some hundred megabytes of
them. Bound by writing and reading these: 4 * Hq * D * K bytes a query in half precision.
Ideas: Yuan et al. 2025, arXiv:2502.11089; key blocks outermost: Yan et al. 2025, arXiv:2508.18224.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.blocks import load_rows
from ..attention.interval import row_bounds
from ..attention.launch import Inputs
from ..attention.tiles import LOG2_E, Capability, padded_head_dim, precision
from .kept import document_of, head_rows, kept_keys, seen_whole
from .lists import SLOT_BITS, lists, slot_of
from .places import Places
from .settle import Settled
from .tiles import block_tile, merge_warps

SPAN_BYTES = 1 << 30  # outputs of slots that are held at a time
LEAST_SPAN = 64  # queries that are taken together all the same
ITEM = 256  # entries of a list that one program takes


@triton.jit
def attend_entries(
    q, slot_out, slot_lse, entries, times, query_tiles, k_tile, v_tile, begin, end, start, block_stop, choice,
    stride_qt, stride_qh, first, shift, own_keys, k_start, document, n_choices, heads, scale, n_documents,
    left, right, limit_left, limit_right, parameters, row_bits, key_bits, list_rows, list_begins, list_entries,
    MASKED: tl.constexpr, HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    LISTS: tl.constexpr, UNCUT: tl.constexpr, PASSES: tl.constexpr, LIMITED: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_N: tl.constexpr, SLOTS: tl.constexpr, SLOT_BITS: tl.constexpr, HEADS: tl.constexpr, BLOCK_M: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, NEGATE: tl.constexpr, BY_TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend from the queries of the entries begin .. end to the block's keys, start .. block_stop."""
    d = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    j = start + tl.arange(0, BLOCK_N)
    own_head = m % HEADS
    head = choice * heads + own_head
    for chunk in tl.range(begin, end, BLOCK_M // HEADS):
        nth = chunk + m // HEADS
        inside = (nth < end) & (own_head < heads)
        entry = tl.load(entries + nth, mask=nth < end, other=0)
        query, slot = entry >> SLOT_BITS, entry & ((1 << SLOT_BITS) - 1)
        rows = first + query
        q_at = q + (rows.to(tl.int64) * stride_qt + head * stride_qh)[:, None] + d[None, :]
        queries = tl.load(q_at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
        if NEGATE:
            queries = -queries
        logits = tl.dot(queries, tl.trans(k_tile), input_precision=PRECISION) * scale
        if MASKED:
            i = rows - shift
            low, high = row_bounds(
                i, own_keys, left, right, parameters, row_bits, rows, inside, HAS_INTERVAL, CHUNKS, ROWS
            )
            keep = kept_keys(
                i[:, None], low[:, None], high[:, None], inside[:, None], j[None, :], (j < block_stop)[None, :],
                k_start + j[None, :], document, limit_left, limit_right,
                key_bits, n_documents, list_rows, list_begins, list_entries, parameters + 3 * CHUNKS + 2 * ROWS,
                CAUSAL, LIMITED, COLUMNS, LISTS, PASSES, UNCUT,
            )  # fmt: skip
            logits = tl.where(keep, logits, float("-inf"))
            top = tl.max(logits, 1)
            weights = tl.exp2(logits - tl.where(top == float("-inf"), 0.0, top)[:, None])
        else:
            top = tl.max(logits, 1)
            weights = tl.exp2(logits - top[:, None])
        total = tl.sum(weights, 1)
        result = tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=PRECISION)
        result = result / tl.where(total == 0.0, 1.0, total)[:, None]
        often_at = slot_of(rows, slot, choice, query_tiles, inside, n_choices, SLOTS, BY_TILE)
        often = tl.load(times + often_at, mask=inside, other=1).to(tl.float32)  # a block named twice counts twice
        to = ((query.to(tl.int64) * n_choices + choice) * SLOTS + slot) * heads + own_head
        out_at = slot_out + (to * D)[:, None] + d[None, :]
        tl.store(out_at, result.to(slot_out.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])
        tl.store(slot_lse + to, top + tl.log2(tl.maximum(total, 1.0) * often), mask=inside)


@triton.jit(do_not_specialize=["n_rows", "n_keys", "n_documents", "offset", "n_blocks", "first"])
def forward_blocks_kernel(
    q, k, v, begins, entries, first_items, items, times, query_tiles, slot_out, slot_lse, block_table,
    documents, parameters, row_bits, key_bits, block_flags, list_rows, list_begins, list_entries,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    first, n_rows, n_keys, offset, n_documents, n_blocks, n_choices, heads, group, scale,
    left, right, limit_left, limit_right,
    HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LISTS: tl.constexpr,
    UNCUT: tl.constexpr, PASSES: tl.constexpr, ALWAYS: tl.constexpr, LIMITED: tl.constexpr, CAUSAL: tl.constexpr,
    PACKED: tl.constexpr, SIZE: tl.constexpr, BLOCK_N: tl.constexpr, SLOTS: tl.constexpr, SLOT_BITS: tl.constexpr,
    ITEM: tl.constexpr, HEADS: tl.constexpr, BLOCK_M: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    NEGATE: tl.constexpr, BY_TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    if item < tl.load(first_items + n_rows):
        row = tl.load(items + item)
        begin = tl.load(begins + row) + (item - tl.load(first_items + row)) * ITEM
        end = tl.minimum(begin + ITEM, tl.load(begins + row + 1))
        choice, block = row // n_blocks, row % n_blocks
        document, number = 0, block
        if PACKED:
            document, number = tl.load(block_table + 2 * block), tl.load(block_table + 2 * block + 1)
        k_start, own_keys, _, shift = document_of(documents, document, offset, n_keys, PACKED)
        start = number * SIZE
        block_stop = tl.minimum(start + SIZE, own_keys)
        j = start + tl.arange(0, BLOCK_N)
        kv_head = choice * heads // group
        k_tile = load_rows(head_rows(k, kv_head, stride_kh, False), k_start + j, j < block_stop, stride_kt, D, BLOCK_D)
        v_tile = load_rows(head_rows(v, kv_head, stride_vh, False), k_start + j, j < block_stop, stride_vt, D, BLOCK_D)

        # Entries are in the order of their queries: the first and the last bound the others.
        lowest = first + (tl.load(entries + begin) >> SLOT_BITS) - shift
        highest = first + (tl.load(entries + end - 1) >> SLOT_BITS) - shift
        free = seen_whole(
            start, lowest, highest, own_keys, block_flags, block, left, right, parameters,
            SIZE, BLOCK_N, CAUSAL, HAS_INTERVAL, CHUNKS, COLUMNS, ALWAYS,
        )  # fmt: skip
        if free:
            attend_entries(
                q, slot_out, slot_lse, entries, times, query_tiles, k_tile, v_tile, begin, end, start, block_stop, choice,
                stride_qt, stride_qh, first, shift, own_keys, k_start, document, n_choices, heads, scale, n_documents,
                left, right, limit_left, limit_right, parameters, row_bits, key_bits, list_rows, list_begins, list_entries,
                False, HAS_INTERVAL, CHUNKS, ROWS, COLUMNS, LISTS, UNCUT, PASSES, LIMITED, CAUSAL, BLOCK_N, SLOTS, SLOT_BITS,
                HEADS, BLOCK_M, D, BLOCK_D, NEGATE, BY_TILE, PRECISION,
            )  # fmt: skip
        else:
            attend_entries(
                q, slot_out, slot_lse, entries, times, query_tiles, k_tile, v_tile, begin, end, start, block_stop, choice,
                stride_qt, stride_qh, first, shift, own_keys, k_start, document, n_choices, heads, scale, n_documents,
                left, right, limit_left, limit_right, parameters, row_bits, key_bits, list_rows, list_begins, list_entries,
                True, HAS_INTERVAL, CHUNKS, ROWS, COLUMNS, LISTS, UNCUT, PASSES, LIMITED, CAUSAL, BLOCK_N, SLOTS, SLOT_BITS,
                HEADS, BLOCK_M, D, BLOCK_D, NEGATE, BY_TILE, PRECISION,
            )  # fmt: skip


@triton.jit(do_not_specialize=["first"])
def merge_slots_kernel(
    blocks, query_tiles, slot_out, slot_lse, out, lse, first, n_choices, heads, scale,
    SLOTS: tl.constexpr, BLOCK_S: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    UNROLL: tl.constexpr, WEIGHTED: tl.constexpr, BY_TILE: tl.constexpr,
):  # fmt: skip
    """Sum what the slots of a query hold: weighted by their LSEs, or as it is; times `scale`."""
    choice = tl.program_id(0) % n_choices
    query = tl.program_id(0) // n_choices
    tile = first + query
    if BY_TILE:
        tile = tl.load(query_tiles + tile)
    s = tl.arange(0, BLOCK_S)
    h = tl.arange(0, HEADS)
    d = tl.arange(0, BLOCK_D)
    entries = blocks + (tile.to(tl.int64) * n_choices + choice) * SLOTS
    at = (query.to(tl.int64) * n_choices + choice) * SLOTS * heads
    own_head = h < heads
    to = (first + query).to(tl.int64) * n_choices * heads + choice * heads + h
    base = tl.zeros([HEADS], tl.float32)
    if WEIGHTED:
        live = (tl.load(entries + s, mask=s < SLOTS, other=-1) >= 0)[:, None] & own_head[None, :]
        parts = tl.load(slot_lse + at + s[:, None] * heads + h[None, :], mask=live, other=float("-inf"))
        top = tl.max(parts, 0)
        total = tl.sum(tl.exp2(parts - tl.where(top == float("-inf"), 0.0, top)[None, :]), 0)
        base = tl.where(total == 0.0, 0.0, top + tl.log2(total))  # what the slots' weights are relative to
        tl.store(lse + to, (top + tl.log2(tl.maximum(total, 1.0))) * 0.6931471805599453, mask=own_head)

    # One slot after the other, so that each thread sums numbers of its own; several are on their way at a time.
    acc = tl.zeros([HEADS, BLOCK_D], tl.float32)
    for start in tl.range(0, SLOTS, UNROLL):
        for nth in tl.static_range(UNROLL):
            slot = start + nth
            there = (tl.load(entries + slot, mask=slot < SLOTS, other=-1) >= 0) & own_head
            row = at + slot * heads + h
            part_at = slot_out + (row * D)[:, None] + d[None, :]
            part = tl.load(part_at, mask=there[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
            if WEIGHTED:
                weight = tl.exp2(tl.load(slot_lse + row, mask=there, other=float("-inf")) - base)
                acc += weight[:, None] * part
            else:
                acc += part
    out_at = out + (to * D)[:, None] + d[None, :]
    tl.store(out_at, (acc * scale).to(out.dtype.element_ty), mask=own_head[:, None] & (d < D)[None, :])


def merge_slots(
    settled: Settled, where: Places, slot_out: Tensor, slot_lse: Tensor | None, out: Tensor, lse: Tensor | None,
    first: int, stop: int, scale: float = 1.0,
) -> None:  # fmt: skip
    """Write rows first .. stop of `out` (and of `lse`) from what the slots hold; without LSEs, their plain sum times `scale`."""
    n_choices, slots = settled.blocks.shape[1:]
    heads, head_dim = out.shape[2] // n_choices, out.shape[3]
    block_h, block_d = triton.next_power_of_2(heads), padded_head_dim(head_dim)
    tiles = where.query_tiles(out.device)
    merge_slots_kernel[((stop - first) * n_choices,)](
        settled.blocks, tiles, slot_out, slot_lse, out, lse, first, n_choices, heads, scale,
        SLOTS=slots, BLOCK_S=triton.next_power_of_2(slots), HEADS=block_h, D=head_dim, BLOCK_D=block_d,
        UNROLL=min(8, triton.next_power_of_2(slots)), WEIGHTED=slot_lse is not None, BY_TILE=tiles is not None,
        num_warps=merge_warps(block_h, block_d),
    )  # fmt: skip


def span_of(where: Places, n_queries: int, n_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """How many queries' slots are held at a time."""
    row = max(1, where.slots * n_heads * head_dim * dtype.itemsize)
    return max(1, min(n_queries, max(LEAST_SPAN, SPAN_BYTES // row), (1 << (31 - SLOT_BITS)) - 1))


def forward_blocks(
    inputs: Inputs, settled: Settled, where: Places, scale: float, capability: Capability
) -> tuple[Tensor, Tensor]:
    """Output in q's dtype and LSE ``[1, T, Hq]`` in float32."""
    q, k, v = inputs.q, inputs.k, inputs.v
    _, n_queries, n_heads, head_dim = q.shape
    n_choices = settled.blocks.shape[1]
    heads = n_heads // n_choices
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((1, n_queries, n_heads), dtype=torch.float32, device=q.device)
    if not out.numel():
        return out, lse
    tile = block_tile(capability, head_dim, q.dtype)
    block_h = triton.next_power_of_2(heads)
    span = span_of(where, n_queries, n_heads, head_dim, q.dtype)
    slot_out = torch.empty((span, n_choices, where.slots, heads, head_dim), dtype=q.dtype, device=q.device)
    slot_lse = torch.empty((span, n_choices, where.slots, heads), dtype=torch.float32, device=q.device)
    arguments, tiles = where.arguments(q.device), where.query_tiles(q.device)
    for first in range(0, n_queries, span):
        stop = min(first + span, n_queries)
        found = lists(settled.blocks, where, first, stop, ITEM)
        forward_blocks_kernel[(max(found.most_items, 1),)](
            q, k, v, found.begins, found.entries, found.first_items, found.items, settled.times, tiles, slot_out, slot_lse,
            where.block_table(q.device),
            stride_qt=q.stride(1), stride_qh=q.stride(2), stride_kt=k.stride(1), stride_kh=k.stride(2),
            stride_vt=v.stride(1), stride_vh=v.stride(2),
            first=first, n_rows=len(found.begins) - 1, n_keys=k.shape[1], offset=k.shape[1] - n_queries,
            n_blocks=where.n_blocks, n_choices=n_choices, heads=heads, group=n_heads // k.shape[2],
            scale=abs(scale) * LOG2_E, NEGATE=scale < 0, SLOTS=where.slots, SLOT_BITS=SLOT_BITS, ITEM=ITEM,
            BY_TILE=tiles is not None, HEADS=block_h, BLOCK_M=max(tile.m, block_h), D=head_dim, BLOCK_D=padded_head_dim(head_dim),
            PRECISION=precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages, **arguments,
        )  # fmt: skip
        merge_slots(settled, where, slot_out, slot_lse, out, lse, first, stop)
    return out, lse
