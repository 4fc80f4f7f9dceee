"""Backward kernel for keys and values: a tile of keys stays, the queries that see it walk past.

    s = log2(e) * scale * k q^T;  p = 2^(s - lse2);  dv = sum p dout
    dk = scale * sum ds q,  ds = p * (v dout^T - delta)

All sums run over the query heads of a group and the queries of the tile's span, inside one program and in one order: no
atomics, and the same bits every time. Everything is transposed, keys down and queries across, so that p and ds enter
their products as they stand. One loop serves masked and unmasked tiles: three would hold more registers than there are.
Then come the full rows outside that span, and the query blocks that list one of the tile's key blocks. Columns and extra
keys have kernels of their own; a dilated pass adds to what the passes before it have written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import head_pointer, load_rows, load_tile, locate_block, readable_rows
from .geometry import Geometry, Walk
from .interval import query_bounds, row_bounds
from .launch import Gradients, Inputs, lengths_of, shared_arguments
from .named import in_columns, in_lists, named_before_pass, near
from .tiles import LOG2_E, Capability, backward_keys_tile, can_use_tma, padded_head_dim, precision, tile_source


@triton.jit
def key_gradient_step(
    k, v, q, d_out, lse2, delta, keep, dk, dv, scale2, MASKED: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Add the share of queries q to (dk / scale, dv)."""
    logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2 - lse2[None, :]
    if MASKED:
        # Hidden before the power is taken: a row without keys has LSE -inf, and 2^inf times 0 is NaN.
        logits = tl.where(keep, logits, float("-inf"))
    weights = tl.exp2(logits)
    dv = tl.dot(weights.to(d_out.dtype), d_out, dv, input_precision=PRECISION)
    d_logits = weights * (tl.dot(v, tl.trans(d_out), input_precision=PRECISION) - delta[None, :])
    dk = tl.dot(d_logits.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=lengths_of("backward_keys"))
def backward_keys_kernel(
    q, k, v, d_out, q_rows, d_rows, lse2, delta, dk, dv,
    blocks, documents, parameters, row_bits, row_positions, key_bits, list_rows, list_begins, list_entries,
    columns_rows, columns_begins, columns_entries,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, stride_gb, stride_gt, stride_gh, stride_row,
    n_blocks, n_documents, n_queries, n_keys, offset, n_kv_heads, scale, scale2, left, right, step, hop_left, hop_right,
    HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LISTS: tl.constexpr,
    UNCUT: tl.constexpr, EARLIER: tl.constexpr, EXCLUDES: tl.constexpr, TABLE: tl.constexpr, PACKED: tl.constexpr,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    USE_TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    DILATED: tl.constexpr = EARLIER >= 0
    program = tl.program_id(0)
    kv_head = program % n_kv_heads
    batch = program // n_kv_heads // n_blocks
    document, residue, x, stop, q_start, k_start, own_keys, first_query = locate_block(
        program // n_kv_heads % n_blocks, blocks, documents, 0, offset, n_queries, n_keys, BLOCK_N, TABLE, PACKED
    )
    shift = q_start - first_query  # from a position to its row
    if DILATED:
        n_x = (own_keys - residue + step - 1) // step
        first_x = (first_query - residue + step - 1) // step
        rows_stop = n_x
    else:
        n_x, first_x = own_keys, first_query
        rows_stop = readable_rows(first_query, own_keys, PACKED)
    base = shift + residue
    xs = x + tl.arange(0, BLOCK_N)
    here = xs < stop
    j = residue + xs * step
    tokens = k_start + j
    k_tile = load_rows(
        head_pointer(k, batch, kv_head, stride_kb, stride_kh, False), tokens, here, stride_kt, D, BLOCK_D
    )
    v_tile = load_rows(
        head_pointer(v, batch, kv_head, stride_vb, stride_vh, False), tokens, here, stride_vt, D, BLOCK_D
    )
    dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    if DILATED:
        low_first, high_first = tl.maximum(x - hop_right, first_x), tl.minimum(x + hop_left, n_x)
        low_last, high_last = tl.maximum(stop - 1 - hop_right, first_x), tl.minimum(stop - 1 + hop_left, n_x)
    elif HAS_INTERVAL:
        low_first, high_first = query_bounds(x, first_query, own_keys, left, right, parameters, CHUNKS)
        low_last, high_last = query_bounds(stop - 1, first_query, own_keys, left, right, parameters, CHUNKS)
    else:
        low_first, high_first, low_last, high_last = first_query, first_query, first_query, first_query
    m = tl.arange(0, BLOCK_M)
    behind_rows = parameters + 3 * CHUNKS + 2 * ROWS
    for g in range(GROUP):
        head = kv_head * GROUP + g
        q_head = head_pointer(q, batch, head, stride_qb, stride_qh, USE_TMA)
        d_head = head_pointer(d_out, batch, head, stride_db, stride_dh, USE_TMA)
        rows_at = (batch.to(tl.int64) * n_kv_heads * GROUP + head) * stride_row
        if HAS_INTERVAL or DILATED:
            for start in tl.range(low_first, high_last, BLOCK_M):
                q_tile = load_tile(
                    q_head, batch, head, residue, start, first_x, n_x, base, step, stride_qt,
                    D, BLOCK_M, BLOCK_D, USE_TMA, PACKED, DILATED,
                )  # fmt: skip
                d_tile = load_tile(
                    d_head, batch, head, residue, start, first_x, n_x, base, step, stride_dt,
                    D, BLOCK_M, BLOCK_D, USE_TMA, PACKED, DILATED,
                )  # fmt: skip
                inside = start + m < n_x
                rows = base + (start + m) * step
                readable = start + m < rows_stop
                lse_row = tl.load(lse2 + rows_at + rows, mask=readable, other=float("inf"))  # weight 0 past the end
                delta_row = tl.load(delta + rows_at + rows, mask=readable, other=0.0)
                i = residue + (start + m) * step
                if EXCLUDES:
                    low, high = row_bounds(
                        i, own_keys, left, right, parameters, row_bits, rows, inside, HAS_INTERVAL, CHUNKS, ROWS
                    )
                    hops = (start + m)[None, :] - xs[:, None]
                    keep = (hops < hop_left) & (-hops <= hop_right) & here[:, None] & inside[None, :]
                    keep = keep & (
                        named_before_pass(
                            i[None, :], j[:, None], low[None, :], high[None, :], inside[None, :],
                            key_bits, tokens[:, None], here[:, None], document, n_documents,
                            list_rows, list_begins, list_entries, behind_rows, EARLIER, COLUMNS, LISTS, UNCUT,
                        )
                        == 0
                    )  # fmt: skip
                    dk_acc, dv_acc = key_gradient_step(
                        k_tile,
                        v_tile,
                        q_tile,
                        d_tile,
                        lse_row,
                        delta_row,
                        keep,
                        dk_acc,
                        dv_acc,
                        scale2,
                        True,
                        PRECISION,
                    )
                else:
                    weights = tl.exp2(
                        tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * scale2 - lse_row[None, :]
                    )
                    if (start < low_last) | (start + BLOCK_M > high_first):
                        if DILATED:
                            hops = (start + m)[None, :] - xs[:, None]
                            keep = (hops < hop_left) & (-hops <= hop_right)
                        else:
                            low, high = row_bounds(
                                i, own_keys, left, right, parameters, row_bits, rows, inside, True, CHUNKS, ROWS
                            )
                            keep = (low[None, :] <= j[:, None]) & (j[:, None] < high[None, :])
                        weights = tl.where(keep, weights, 0.0)
                    dv_acc = tl.dot(weights.to(d_tile.dtype), d_tile, dv_acc, input_precision=PRECISION)
                    d_weights = tl.dot(v_tile, tl.trans(d_tile), input_precision=PRECISION)
                    d_logits = weights * (d_weights - delta_row[None, :])
                    dk_acc = tl.dot(d_logits.to(q_tile.dtype), q_tile, dk_acc, input_precision=PRECISION)

        # Full rows that the loop above did not pass.
        if ROWS > 0 and not DILATED:
            passed = low_first + (high_last - low_first + BLOCK_M - 1) // BLOCK_M * BLOCK_M
            q_head_rows = head_pointer(q_rows, batch, head, stride_qb, stride_qh, False)
            d_head_rows = head_pointer(d_rows, batch, head, stride_db, stride_dh, False)
            full_stop = tl.load(documents + 7 * document + 6)
            for full in tl.range(tl.load(documents + 7 * document + 5), full_stop, BLOCK_M):
                inside = full + m < full_stop
                i = tl.load(row_positions + full + m, mask=inside, other=first_query)
                rows = i + shift
                q_tile = load_rows(q_head_rows, rows, inside, stride_qt, D, BLOCK_D)
                d_tile = load_rows(d_head_rows, rows, inside, stride_dt, D, BLOCK_D)
                lse_row = tl.load(lse2 + rows_at + rows, mask=inside, other=float("inf"))
                delta_row = tl.load(delta + rows_at + rows, mask=inside, other=0.0)
                low, high = row_bounds(
                    i, own_keys, left, right, parameters, row_bits, rows, inside, HAS_INTERVAL, CHUNKS, ROWS
                )
                fresh = inside & ((i < low_first) | (i >= passed))
                keep = (low[None, :] <= j[:, None]) & (j[:, None] < high[None, :]) & fresh[None, :] & here[:, None]
                dk_acc, dv_acc = key_gradient_step(
                    k_tile, v_tile, q_tile, d_tile, lse_row, delta_row, keep, dk_acc, dv_acc, scale2, True, PRECISION
                )

        # Query blocks that list a key block of the tile.
        if LISTS > 0 and not DILATED:
            q_head_rows = head_pointer(q_rows, batch, head, stride_qb, stride_qh, False)
            d_head_rows = head_pointer(d_rows, batch, head, stride_db, stride_dh, False)
            limits = behind_rows + 2 * COLUMNS
            for number in tl.static_range(LISTS):
                size = tl.load(limits + 3 * number)
                tiles = (size + BLOCK_M - 1) // BLOCK_M
                row_base = tl.load(columns_rows + number * n_documents + document)
                entry = tl.load(columns_begins + row_base + x // size)
                entry_stop = tl.load(columns_begins + row_base + (stop - 1) // size + 1)
                for nth in tl.range(entry * tiles, entry_stop * tiles):
                    query_block = tl.load(columns_entries + 2 * (nth // tiles))
                    key_block = tl.load(columns_entries + 2 * (nth // tiles) + 1)
                    i = query_block * size + nth % tiles * BLOCK_M + m
                    inside = (i >= first_query) & (i < tl.minimum(query_block * size + size, own_keys))
                    rows = i + shift
                    q_tile = load_rows(q_head_rows, rows, inside, stride_qt, D, BLOCK_D)
                    d_tile = load_rows(d_head_rows, rows, inside, stride_dt, D, BLOCK_D)
                    lse_row = tl.load(lse2 + rows_at + rows, mask=inside, other=float("inf"))
                    delta_row = tl.load(delta + rows_at + rows, mask=inside, other=0.0)
                    low, high = row_bounds(
                        i, own_keys, left, right, parameters, row_bits, rows, inside, HAS_INTERVAL, CHUNKS, ROWS
                    )
                    keep = (j // size == key_block)[:, None] & here[:, None] & inside[None, :]
                    keep = keep & ((j[:, None] < low[None, :]) | (j[:, None] >= high[None, :]))
                    keep = keep & near(i[None, :], j[:, None], limits + 3 * number + 1)
                    if COLUMNS > 0:
                        bits = tl.load(key_bits + tokens, mask=here, other=0)[:, None]
                        keep = keep & (in_columns(i[None, :], j[:, None], bits, behind_rows, COLUMNS, UNCUT) == 0)
                    if number > 0:
                        named = in_lists(
                            i[None, :], j[:, None], inside[None, :], document, n_documents,
                            list_rows, list_begins, list_entries, limits, number,
                        )  # fmt: skip
                        keep = keep & (named == 0)
                    dk_acc, dv_acc = key_gradient_step(
                        k_tile,
                        v_tile,
                        q_tile,
                        d_tile,
                        lse_row,
                        delta_row,
                        keep,
                        dk_acc,
                        dv_acc,
                        scale2,
                        True,
                        PRECISION,
                    )

    d = tl.arange(0, BLOCK_D)
    at = (tokens.to(tl.int64) * stride_gt)[:, None] + d[None, :]
    stored = here[:, None] & (d < D)[None, :]
    dk_at = head_pointer(dk, batch, kv_head, stride_gb, stride_gh, False) + at
    dv_at = head_pointer(dv, batch, kv_head, stride_gb, stride_gh, False) + at
    dk_acc *= scale
    if EXCLUDES:
        dk_acc += tl.load(dk_at, mask=stored, other=0.0).to(tl.float32)
        dv_acc += tl.load(dv_at, mask=stored, other=0.0).to(tl.float32)
    tl.store(dk_at, dk_acc.to(dk.dtype.element_ty), mask=stored)
    tl.store(dv_at, dv_acc.to(dv.dtype.element_ty), mask=stored)


def backward_keys(
    inputs: Inputs, gradients: Gradients, where: Geometry, scale: float, capability: Capability
) -> tuple[Tensor, Tensor]:
    """dk and dv in k's dtype, but for the columns' share."""
    dk, dv = (torch.empty_like(inputs.k, memory_format=torch.contiguous_format) for _ in range(2))
    if dk.numel():
        for walk in where.walks:
            _backward_pass(inputs, gradients, dk, dv, where, walk, scale, capability)
    return dk, dv


def _backward_pass(
    inputs: Inputs,
    gradients: Gradients,
    dk: Tensor,
    dv: Tensor,
    where: Geometry,
    walk: Walk,
    scale: float,
    capability: Capability,
) -> None:
    q, k, v, d_out = inputs.q, inputs.k, inputs.v, gradients.d_out
    batch, n_queries, n_heads, head_dim = q.shape
    n_keys, n_kv_heads = k.shape[1:3]
    tile = backward_keys_tile(capability, head_dim, q.dtype)
    n_blocks, table = where.blocks(walk, tile.n, "k", q.device)
    if n_blocks == 0:
        return
    use_tma = can_use_tma(capability, where, walk, q, d_out)
    transposed = where.list_tables(q.device, "k") or (None, None, None)
    backward_keys_kernel[(n_blocks * n_kv_heads * batch,)](
        tile_source(q, tile.m, use_tma, walk), k, v, tile_source(d_out, tile.m, use_tma, walk), q, d_out,
        gradients.lse2, gradients.delta, dk, dv,
        blocks=table, row_positions=where.row_tables(q.device)[1],
        columns_rows=transposed[0], columns_begins=transposed[1], columns_entries=transposed[2],
        n_blocks=n_blocks, n_queries=n_queries, n_keys=n_keys, offset=n_keys - n_queries, n_kv_heads=n_kv_heads,
        stride_qb=q.stride(0), stride_qt=q.stride(1), stride_qh=q.stride(2),
        stride_kb=k.stride(0), stride_kt=k.stride(1), stride_kh=k.stride(2),
        stride_vb=v.stride(0), stride_vt=v.stride(1), stride_vh=v.stride(2),
        stride_db=d_out.stride(0), stride_dt=d_out.stride(1), stride_dh=d_out.stride(2),
        stride_gb=dk.stride(0), stride_gt=dk.stride(1), stride_gh=dk.stride(2),
        stride_row=gradients.lse2.stride(1), scale=scale, scale2=scale * LOG2_E, GROUP=n_heads // n_kv_heads, D=head_dim,
        BLOCK_D=padded_head_dim(head_dim), BLOCK_M=tile.m, BLOCK_N=tile.n, USE_TMA=use_tma,
        PRECISION=precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages,
        **shared_arguments(where, walk, q.device),
    )  # fmt: skip
