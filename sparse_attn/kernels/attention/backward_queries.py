"""Backward kernel for queries: a tile of queries walks along its keys again, part by part, as in the forward kernel.

s = log2(e) * scale * q k^T;  p = 2^(s - lse2);  ds = p * (dout v^T - delta);  dq = scale * sum ds k

A dilated pass adds to what the passes before it have written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import head_pointer, load_rows, load_tile, locate_block
from .geometry import Geometry, Walk
from .interval import row_bounds, tile_bounds, tiles_beside_interval
from .launch import Gradients, Inputs, key_arguments, lengths_of, shared_arguments
from .named import column_keep, list_keep, named_before_pass
from .tiles import LOG2_E, Capability, backward_queries_tile, can_use_tma, padded_head_dim, precision, tile_source


@triton.jit
def query_gradient_step(
    q, d_out, lse2, delta, k, v, keep, acc, scale2, MASKED: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Add the share of keys k and values v to acc, dq / scale."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2 - lse2[:, None]
    if MASKED:
        # Hidden before the power is taken: a row without keys has LSE -inf, and 2^inf times 0 is NaN.
        logits = tl.where(keep, logits, float("-inf"))
    weights = tl.exp2(logits)
    d_logits = weights * (tl.dot(d_out, tl.trans(v), input_precision=PRECISION) - delta[:, None])
    return tl.dot(d_logits.to(k.dtype), k, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=lengths_of("backward_queries"))
def backward_queries_kernel(
    q, k, v, list_k, list_v, d_out, lse2, delta, dq, extra_k, extra_v, column_k, column_v,
    blocks, documents, parameters, row_bits, key_bits, column_positions, column_tokens, column_ranges,
    list_rows, list_begins, list_entries,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, stride_gb, stride_gt, stride_gh, stride_cb, stride_ct, stride_ch,
    stride_eb, stride_et, stride_eh, stride_row,
    n_blocks, n_documents, n_queries, n_keys, offset, n_heads, scale, scale2,
    left, right, step, hop_left, hop_right, extra_block,
    HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LISTS: tl.constexpr,
    UNCUT: tl.constexpr, SIDES: tl.constexpr, EXTRA: tl.constexpr, EARLIER: tl.constexpr, EXCLUDES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_E: tl.constexpr,
    TABLE: tl.constexpr, PACKED: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr, COLUMN_TMA: tl.constexpr,
    LIST_TMA: tl.constexpr, EXTRA_TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    DILATED: tl.constexpr = EARLIER >= 0
    program = tl.program_id(0)
    head = program % n_heads
    block = n_blocks - 1 - program // n_heads % n_blocks
    batch = program // n_heads // n_blocks
    kv_head = head // GROUP
    document, residue, x, stop, q_start, k_start, own_keys, first_query = locate_block(
        block, blocks, documents, offset, offset, n_queries, n_keys, BLOCK_M, TABLE, PACKED
    )
    shift = q_start - first_query  # from a position to its row
    n_x = (own_keys - residue + step - 1) // step if DILATED else own_keys
    base = k_start + residue
    xs = x + tl.arange(0, BLOCK_M)
    inside = xs < stop
    i = residue + xs * step
    rows = i + shift
    q_tile = load_rows(head_pointer(q, batch, head, stride_qb, stride_qh, False), rows, inside, stride_qt, D, BLOCK_D)
    d_tile = load_rows(
        head_pointer(d_out, batch, head, stride_db, stride_dh, False), rows, inside, stride_dt, D, BLOCK_D
    )  # fmt: skip
    rows_at = (batch.to(tl.int64) * n_heads + head) * stride_row + rows
    lse_row = tl.load(lse2 + rows_at, mask=inside, other=float("inf"))
    delta_row = tl.load(delta + rows_at, mask=inside, other=0.0)
    keys = head_pointer(k, batch, kv_head, stride_kb, stride_kh, USE_TMA)
    values = head_pointer(v, batch, kv_head, stride_vb, stride_vh, USE_TMA)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # The run of keys around each query, in one loop; only a dilated pass masks every tile.
    low, high = row_bounds(
        i, own_keys, left, right, parameters, row_bits, rows, inside, HAS_INTERVAL, CHUNKS, ROWS
    )  # fmt: skip
    n = tl.arange(0, BLOCK_N)
    behind_rows = parameters + 3 * CHUNKS + 2 * ROWS
    if DILATED:
        run_low, run_high = tl.maximum(xs - hop_left + 1, 0), tl.minimum(xs + hop_right + 1, n_x)
        begin, last_low = tl.maximum(x - hop_left + 1, 0), tl.maximum(stop - hop_left, 0)
        first_high, end = tl.minimum(x + hop_right + 1, n_x), tl.minimum(stop + hop_right, n_x)
    else:
        run_low, run_high = low, high
        begin, last_low, first_high, end = tile_bounds(
            x, stop, low, high, inside, own_keys, left, right, parameters, HAS_INTERVAL, CHUNKS, ROWS
        )
    begin = begin // BLOCK_N * BLOCK_N
    if EXCLUDES:
        skip, resume, before = tiles_beside_interval(
            begin, end, low, high, inside, n_keys, residue, step, HAS_INTERVAL, BLOCK_N
        )
        for nth in tl.range(before + (end - resume + BLOCK_N - 1) // BLOCK_N):
            start = tl.where(nth < before, begin + nth * BLOCK_N, resume + (nth - before) * BLOCK_N)
            limit = tl.where(nth < before, skip, end)
            k_tile = load_tile(
                keys, batch, kv_head, residue, start, 0, n_x, base, step, stride_kt,
                D, BLOCK_N, BLOCK_D, USE_TMA, PACKED, True,
            )  # fmt: skip
            v_tile = load_tile(
                values, batch, kv_head, residue, start, 0, n_x, base, step, stride_vt,
                D, BLOCK_N, BLOCK_D, USE_TMA, PACKED, True,
            )  # fmt: skip
            hops = (start + n)[None, :]
            j = residue + hops * step
            keep = (run_low[:, None] <= hops) & (hops < run_high[:, None]) & (hops < limit)
            keep = keep & (
                named_before_pass(
                    i[:, None], j, low[:, None], high[:, None], inside[:, None], key_bits, k_start + j, hops < n_x,
                    document, n_documents, list_rows, list_begins, list_entries, behind_rows, EARLIER, COLUMNS, LISTS, UNCUT,
                )
                == 0
            )  # fmt: skip
            acc = query_gradient_step(
                q_tile, d_tile, lse_row, delta_row, k_tile, v_tile, keep, acc, scale2, True, PRECISION
            )
    elif HAS_INTERVAL or ROWS > 0 or DILATED:
        for start in tl.range(begin, end, BLOCK_N):
            k_tile = load_tile(
                keys, batch, kv_head, residue, start, 0, n_x, base, step, stride_kt,
                D, BLOCK_N, BLOCK_D, USE_TMA, PACKED, DILATED,
            )  # fmt: skip
            v_tile = load_tile(
                values, batch, kv_head, residue, start, 0, n_x, base, step, stride_vt,
                D, BLOCK_N, BLOCK_D, USE_TMA, PACKED, DILATED,
            )  # fmt: skip
            weights = tl.exp2(
                tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale2 - lse_row[:, None]
            )  # fmt: skip
            if (start < last_low) | (start + BLOCK_N > first_high):
                keep = (run_low[:, None] <= (start + n)[None, :]) & ((start + n)[None, :] < run_high[:, None])
                weights = tl.where(keep, weights, 0.0)
            d_weights = tl.dot(d_tile, tl.trans(v_tile), input_precision=PRECISION)
            d_logits = weights * (d_weights - delta_row[:, None])
            acc = tl.dot(d_logits.to(k_tile.dtype), k_tile, acc, input_precision=PRECISION)

    if BLOCK_C > 0 and not DILATED:
        column_keys = head_pointer(column_k, batch, kv_head, stride_cb, stride_ch, COLUMN_TMA)
        column_values = head_pointer(column_v, batch, kv_head, stride_cb, stride_ch, COLUMN_TMA)
        for g in tl.static_range(COLUMNS):
            ranges = column_ranges + (block * COLUMNS + g) * 6
            for side in tl.static_range(SIDES):
                c_start, c_mid = tl.load(ranges + 3 * side), tl.load(ranges + 3 * side + 1)
                c_stop = tl.load(ranges + 3 * side + 2)
                if side == 0:
                    c_mid = c_start + (c_mid - c_start) // BLOCK_C * BLOCK_C
                    masked, masked_stop, free, free_stop = c_mid, c_stop, c_start, c_mid
                else:
                    c_mid = c_stop - (c_stop - c_mid) // BLOCK_C * BLOCK_C
                    masked, masked_stop, free, free_stop = c_start, c_mid, c_mid, c_stop
                if g == 0 and ROWS == 0:
                    for c in tl.range(free, free_stop, BLOCK_C):
                        k_tile = load_tile(
                            column_keys, batch, kv_head, 0, c, 0, free_stop, 0, 1, stride_ct,
                            D, BLOCK_C, BLOCK_D, COLUMN_TMA, False, False,
                        )  # fmt: skip
                        v_tile = load_tile(
                            column_values, batch, kv_head, 0, c, 0, free_stop, 0, 1, stride_ct,
                            D, BLOCK_C, BLOCK_D, COLUMN_TMA, False, False,
                        )  # fmt: skip
                        acc = query_gradient_step(
                            q_tile, d_tile, lse_row, delta_row, k_tile, v_tile, True, acc, scale2, False, PRECISION
                        )
                for c in tl.range(masked, masked_stop, BLOCK_C):
                    k_tile = load_tile(
                        column_keys, batch, kv_head, 0, c, 0, masked_stop, 0, 1, stride_ct,
                        D, BLOCK_C, BLOCK_D, COLUMN_TMA, PACKED, False,
                    )  # fmt: skip
                    v_tile = load_tile(
                        column_values, batch, kv_head, 0, c, 0, masked_stop, 0, 1, stride_ct,
                        D, BLOCK_C, BLOCK_D, COLUMN_TMA, PACKED, False,
                    )  # fmt: skip
                    keep = column_keep(
                        i, low, high, c + tl.arange(0, BLOCK_C), masked_stop, column_positions, column_tokens, key_bits,
                        behind_rows, g, UNCUT,
                    )  # fmt: skip
                    acc = query_gradient_step(
                        q_tile, d_tile, lse_row, delta_row, k_tile, v_tile, keep, acc, scale2, True, PRECISION
                    )

    if LISTS > 0 and not DILATED:
        list_keys = head_pointer(list_k, batch, kv_head, stride_kb, stride_kh, LIST_TMA)
        list_values = head_pointer(list_v, batch, kv_head, stride_vb, stride_vh, LIST_TMA)
        limits = behind_rows + 2 * COLUMNS
        for number in tl.static_range(LISTS):
            size = tl.load(limits + 3 * number)
            tiles = (tl.minimum(size, own_keys) + BLOCK_L - 1) // BLOCK_L
            row_base = tl.load(list_rows + number * n_documents + document)
            entry = tl.load(list_begins + row_base + x // size)
            entry_stop = tl.load(list_begins + row_base + (stop - 1) // size + 1)
            for nth in tl.range(entry * tiles, entry_stop * tiles):
                query_block = tl.load(list_entries + 2 * (nth // tiles))
                key_block = tl.load(list_entries + 2 * (nth // tiles) + 1)
                start = key_block * size + nth % tiles * BLOCK_L
                key_stop = tl.minimum(key_block * size + size, own_keys)
                k_tile = load_tile(
                    list_keys, batch, kv_head, 0, start, 0, key_stop, k_start, 1, stride_kt,
                    D, BLOCK_L, BLOCK_D, LIST_TMA, PACKED, False,
                )  # fmt: skip
                v_tile = load_tile(
                    list_values, batch, kv_head, 0, start, 0, key_stop, k_start, 1, stride_vt,
                    D, BLOCK_L, BLOCK_D, LIST_TMA, PACKED, False,
                )  # fmt: skip
                keep = list_keep(
                    i, low, high, inside, query_block, size, start + tl.arange(0, BLOCK_L), key_stop, k_start, key_bits,
                    document, n_documents, list_rows, list_begins, list_entries, behind_rows, number, COLUMNS, UNCUT,
                )  # fmt: skip
                acc = query_gradient_step(
                    q_tile, d_tile, lse_row, delta_row, k_tile, v_tile, keep, acc, scale2, True, PRECISION
                )

    if EXTRA > 0 and not DILATED:
        extra_keys = head_pointer(extra_k, batch, kv_head, stride_eb, stride_eh, EXTRA_TMA)
        extra_values = head_pointer(extra_v, batch, kv_head, stride_eb, stride_eh, EXTRA_TMA)
        extra_base = 0
        if PACKED:
            extra_base = tl.load(documents + 7 * document + 4) * EXTRA
        extra_stop = ((stop - 1) // extra_block + 1) * EXTRA
        extra_begin = x // extra_block * EXTRA
        if EXTRA % BLOCK_E == 0:
            free_stop = tl.where(extra_stop - extra_begin == EXTRA, extra_stop, extra_begin)
            for e in tl.range(extra_begin, free_stop, BLOCK_E):  # all rows stand in one block
                k_tile = load_tile(
                    extra_keys, batch, kv_head, 0, e, 0, extra_stop, extra_base, 1, stride_et,
                    D, BLOCK_E, BLOCK_D, EXTRA_TMA, False, False,
                )  # fmt: skip
                v_tile = load_tile(
                    extra_values, batch, kv_head, 0, e, 0, extra_stop, extra_base, 1, stride_et,
                    D, BLOCK_E, BLOCK_D, EXTRA_TMA, False, False,
                )  # fmt: skip
                acc = query_gradient_step(
                    q_tile, d_tile, lse_row, delta_row, k_tile, v_tile, True, acc, scale2, False, PRECISION
                )
            extra_begin = free_stop
        for e in tl.range(extra_begin, extra_stop, BLOCK_E):
            k_tile = load_tile(
                extra_keys, batch, kv_head, 0, e, 0, extra_stop, extra_base, 1, stride_et,
                D, BLOCK_E, BLOCK_D, EXTRA_TMA, PACKED, False,
            )  # fmt: skip
            v_tile = load_tile(
                extra_values, batch, kv_head, 0, e, 0, extra_stop, extra_base, 1, stride_et,
                D, BLOCK_E, BLOCK_D, EXTRA_TMA, PACKED, False,
            )  # fmt: skip
            keep = (i // extra_block)[:, None] == ((e + tl.arange(0, BLOCK_E)) // EXTRA)[None, :]
            acc = query_gradient_step(
                q_tile, d_tile, lse_row, delta_row, k_tile, v_tile, keep, acc, scale2, True, PRECISION
            )

    d = tl.arange(0, BLOCK_D)
    at = (
        head_pointer(dq, batch, head, stride_gb, stride_gh, False)
        + (rows.to(tl.int64) * stride_gt)[:, None]
        + d[None, :]
    )
    stored = inside[:, None] & (d < D)[None, :]
    acc *= scale
    if EXCLUDES:
        acc += tl.load(at, mask=stored, other=0.0).to(tl.float32)
    tl.store(at, acc.to(dq.dtype.element_ty), mask=stored)


def backward_queries(
    inputs: Inputs, gradients: Gradients, where: Geometry, scale: float, capability: Capability
) -> Tensor:
    """dq in q's dtype."""
    dq = torch.empty_like(inputs.q, memory_format=torch.contiguous_format)
    if dq.numel():
        for walk in where.walks:
            _backward_pass(inputs, gradients, dq, where, walk, scale, capability)
    return dq


def _backward_pass(
    inputs: Inputs, gradients: Gradients, dq: Tensor, where: Geometry, walk: Walk, scale: float, capability: Capability
) -> None:
    q, k, v, d_out = inputs.q, inputs.k, inputs.v, gradients.d_out
    batch, n_queries, n_heads, head_dim = q.shape
    tile = backward_queries_tile(capability, head_dim, q.dtype, where.walked(walk))
    n_blocks, table = where.blocks(walk, tile.m, "q", q.device)
    if n_blocks == 0:
        return
    use_tma = can_use_tma(capability, where, walk, k, v)
    keys = key_arguments(inputs, where, walk, tile, capability)
    backward_queries_kernel[(n_blocks * n_heads * batch,)](
        q, tile_source(k, tile.n, use_tma, walk), tile_source(v, tile.n, use_tma, walk),
        d_out=d_out, lse2=gradients.lse2, delta=gradients.delta, dq=dq,
        blocks=table, n_blocks=n_blocks, n_queries=n_queries, n_keys=k.shape[1], offset=k.shape[1] - n_queries,
        n_heads=n_heads,
        stride_qb=q.stride(0), stride_qt=q.stride(1), stride_qh=q.stride(2),
        stride_kb=k.stride(0), stride_kt=k.stride(1), stride_kh=k.stride(2),
        stride_vb=v.stride(0), stride_vt=v.stride(1), stride_vh=v.stride(2),
        stride_db=d_out.stride(0), stride_dt=d_out.stride(1), stride_dh=d_out.stride(2),
        stride_gb=dq.stride(0), stride_gt=dq.stride(1), stride_gh=dq.stride(2),
        stride_row=gradients.lse2.stride(1), scale=scale, scale2=scale * LOG2_E, GROUP=n_heads // k.shape[2], D=head_dim,
        BLOCK_D=padded_head_dim(head_dim), BLOCK_M=tile.m, BLOCK_N=tile.n, USE_TMA=use_tma,
        PRECISION=precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages,
        **keys, **shared_arguments(where, walk, q.device),
    )  # fmt: skip
