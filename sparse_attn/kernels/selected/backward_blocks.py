"""Backward kernel, from each block of keys to the queries that chose it.

    s = log2(e) * scale * k q^T;  p = 2^(s - lse2);  dv = sum p dout
    ds = p * (v dout^T - delta);  dk = scale * sum ds q;  dq = scale * sum_slots ds^T k

A block's keys and values stay, the rows of its queries are gathered past them in the order of their list: dk and dv are
summed inside one program. Each (query, slot) gets its share of dq, and a second kernel sums the slots of a query in their
order. No atomics: the same bits every time. Queries are taken in spans, as in the forward pass; dk and dv are summed in
float32 over the spans, one after the other.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.blocks import load_rows
from ..attention.interval import row_bounds
from ..attention.launch import Inputs
from ..attention.tiles import LOG2_E, Capability, padded_head_dim, precision
from .forward_blocks import merge_slots, span_of
from .kept import document_of, head_rows, kept_keys, seen_whole
from .lists import SLOT_BITS, lists, slot_of
from .places import Places
from .settle import Settled
from .tiles import block_gradient_tile


@triton.jit(do_not_specialize=["n_keys", "n_documents", "offset", "n_blocks", "first"])
def backward_blocks_kernel(
    q, k, v, d_out, lse2, delta, begins, entries, times, query_tiles, slot_dq, dk, dv, block_table,
    documents, parameters, row_bits, key_bits, block_flags, list_rows, list_begins, list_entries,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_dt, stride_dh,
    first, n_keys, offset, n_documents, n_blocks, n_choices, heads, scale, scale2,
    left, right, limit_left, limit_right,
    HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LISTS: tl.constexpr,
    UNCUT: tl.constexpr, PASSES: tl.constexpr, ALWAYS: tl.constexpr, LIMITED: tl.constexpr, CAUSAL: tl.constexpr,
    PACKED: tl.constexpr, SIZE: tl.constexpr, BLOCK_N: tl.constexpr, SLOTS: tl.constexpr, SLOT_BITS: tl.constexpr,
    HEADS: tl.constexpr, BLOCK_M: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BY_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    begin, end = tl.load(begins + row), tl.load(begins + row + 1)
    if begin < end:
        choice, block = row // n_blocks, row % n_blocks
        document, number = 0, block
        if PACKED:
            document, number = tl.load(block_table + 2 * block), tl.load(block_table + 2 * block + 1)
        k_start, own_keys, _, shift = document_of(documents, document, offset, n_keys, PACKED)
        d = tl.arange(0, BLOCK_D)
        start = number * SIZE
        block_stop = tl.minimum(start + SIZE, own_keys)
        j = start + tl.arange(0, BLOCK_N)
        k_tile = load_rows(head_rows(k, choice, stride_kh, False), k_start + j, j < block_stop, stride_kt, D, BLOCK_D)
        v_tile = load_rows(head_rows(v, choice, stride_vh, False), k_start + j, j < block_stop, stride_vt, D, BLOCK_D)

        # Entries are in the order of their queries: the first and the last bound the others.
        lowest = first + (tl.load(entries + begin) >> SLOT_BITS) - shift
        highest = first + (tl.load(entries + end - 1) >> SLOT_BITS) - shift
        free = seen_whole(
            start, lowest, highest, own_keys, block_flags, block, left, right, parameters,
            SIZE, BLOCK_N, CAUSAL, HAS_INTERVAL, CHUNKS, COLUMNS, ALWAYS,
        )  # fmt: skip
        m = tl.arange(0, BLOCK_M)
        own_head = m % HEADS
        head = choice * heads + own_head
        dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dv_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for chunk in tl.range(begin, end, BLOCK_M // HEADS):
            nth = chunk + m // HEADS
            inside = (nth < end) & (own_head < heads)
            entry = tl.load(entries + nth, mask=nth < end, other=0)
            query, slot = entry >> SLOT_BITS, entry & ((1 << SLOT_BITS) - 1)
            rows = first + query
            wide = rows.to(tl.int64)
            there = inside[:, None] & (d < D)[None, :]
            q_at = q + (wide * stride_qt + head * stride_qh)[:, None] + d[None, :]
            d_at = d_out + (wide * stride_dt + head * stride_dh)[:, None] + d[None, :]
            queries = tl.load(q_at, mask=there, other=0.0)
            gradients = tl.load(d_at, mask=there, other=0.0)
            number_at = wide * n_choices * heads + head
            lse_row = tl.load(lse2 + number_at, mask=inside, other=float("inf"))  # weight 0 past the end
            delta_row = tl.load(delta + number_at, mask=inside, other=0.0)
            often_at = slot_of(rows, slot, choice, query_tiles, inside, n_choices, SLOTS, BY_TILE)
            lse_row -= tl.log2(
                tl.load(times + often_at, mask=inside, other=1).to(tl.float32)
            )  # named twice: counts twice
            logits = tl.dot(k_tile, tl.trans(queries), input_precision=PRECISION) * scale2 - lse_row[None, :]
            if free == 0:
                i = rows - shift
                low, high = row_bounds(
                    i, own_keys, left, right, parameters, row_bits, rows, inside, HAS_INTERVAL, CHUNKS, ROWS
                )
                keep = kept_keys(
                    i[None, :], low[None, :], high[None, :], inside[None, :], j[:, None], (j < block_stop)[:, None],
                    k_start + j[:, None], document, limit_left, limit_right,
                    key_bits, n_documents, list_rows, list_begins, list_entries, parameters + 3 * CHUNKS + 2 * ROWS,
                    CAUSAL, LIMITED, COLUMNS, LISTS, PASSES, UNCUT,
                )  # fmt: skip
                # Hidden before the power is taken: a row without keys has LSE -inf, and 2^inf times 0 is NaN.
                logits = tl.where(keep, logits, float("-inf"))
            weights = tl.exp2(logits)
            dv_acc = tl.dot(weights.to(gradients.dtype), gradients, dv_acc, input_precision=PRECISION)
            d_logits = tl.dot(v_tile, tl.trans(gradients), input_precision=PRECISION) - delta_row[None, :]
            d_logits = (weights * d_logits).to(queries.dtype)
            dk_acc = tl.dot(d_logits, queries, dk_acc, input_precision=PRECISION)
            share = tl.dot(tl.trans(d_logits), k_tile, input_precision=PRECISION)
            to = ((query.to(tl.int64) * n_choices + choice) * SLOTS + slot) * heads + own_head
            tl.store(slot_dq + (to * D)[:, None] + d[None, :], share.to(slot_dq.dtype.element_ty), mask=there)

        # Added to what earlier spans have left.
        stored = (j < block_stop)[:, None] & (d < D)[None, :]
        at = (((k_start + j).to(tl.int64) * n_choices + choice) * D)[:, None] + d[None, :]
        tl.store(dk + at, tl.load(dk + at, mask=stored, other=0.0) + dk_acc * scale, mask=stored)
        tl.store(dv + at, tl.load(dv + at, mask=stored, other=0.0) + dv_acc, mask=stored)


def backward_blocks(
    inputs: Inputs,
    d_out: Tensor,
    rows: tuple[Tensor, Tensor],
    settled: Settled,
    where: Places,
    scale: float,
    capability: Capability,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv in the inputs' dtype; `rows` are delta and lse2, ``[T, Hq]``."""
    q, k, v = inputs.q, inputs.k, inputs.v
    _, n_queries, n_heads, head_dim = q.shape
    n_choices = settled.blocks.shape[1]
    heads = n_heads // n_choices
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros(k.shape, dtype=torch.float32, device=k.device) for _ in range(2))
    if dq.numel():
        tile = block_gradient_tile(capability, head_dim, q.dtype)
        block_h = triton.next_power_of_2(heads)
        span = span_of(where, n_queries, n_heads, head_dim, q.dtype)
        slot_dq = torch.empty((span, n_choices, where.slots, heads, head_dim), dtype=q.dtype, device=q.device)
        arguments, tiles = where.arguments(q.device), where.query_tiles(q.device)
        for first in range(0, n_queries, span):
            stop = min(first + span, n_queries)
            found = lists(settled.blocks, where, first, stop, 1 << 30)
            backward_blocks_kernel[(len(found.begins) - 1,)](
                q, k, v, d_out, rows[1], rows[0], found.begins, found.entries, settled.times, tiles, slot_dq, dk, dv,
                where.block_table(q.device),
                stride_qt=q.stride(1), stride_qh=q.stride(2), stride_kt=k.stride(1), stride_kh=k.stride(2),
                stride_vt=v.stride(1), stride_vh=v.stride(2), stride_dt=d_out.stride(1), stride_dh=d_out.stride(2),
                first=first, n_keys=k.shape[1], offset=k.shape[1] - n_queries,
                n_blocks=where.n_blocks, n_choices=n_choices, heads=heads, scale=scale, scale2=scale * LOG2_E,
                SLOTS=where.slots, SLOT_BITS=SLOT_BITS, BY_TILE=tiles is not None, HEADS=block_h, BLOCK_M=max(tile.m, block_h),
                D=head_dim, BLOCK_D=padded_head_dim(head_dim), PRECISION=precision(q.dtype),
                num_warps=tile.warps, num_stages=tile.stages, **arguments,
            )  # fmt: skip
            merge_slots(settled, where, slot_dq, None, dq, None, first, stop, scale)
    return dq, dk.to(k.dtype), dv.to(v.dtype)
