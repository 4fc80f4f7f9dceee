"""Backward kernel for queries: a tile of queries walks along its interval of keys again.

s = log2(e) * scale * q k^T;  p = 2^(s - lse2);  ds = p * (dout v^T - delta);  dq = scale * sum ds k
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .columns import column_keep, load_positions
from .gathered import gather_columns
from .geometry import Geometry
from .interval import block_geometry, head_pointer, interval_bounds, load_tile
from .tiles import LOG2_E, backward_queries_tile, can_use_tma, padded_head_dim, precision, tile_source


@triton.jit
def backward_queries_kernel(
    q, k, v, d_out, lse2, delta, dq, blocks, documents, column_k, column_v, column_positions, column_ranges,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, stride_gb, stride_gt, stride_gh, stride_cb, stride_ct, stride_ch,
    n_blocks, n_queries, n_keys, n_heads, scale, scale2, left, right, chunk, chunk_left, chunk_right,
    column_left, column_right,
    HAS_INTERVAL: tl.constexpr, HAS_CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, PACKED: tl.constexpr,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program, batch = tl.program_id(0), tl.program_id(1)
    head = program % n_heads
    block = n_blocks - 1 - program // n_heads
    row, stop, q_start, q_stop, k_start, k_stop = block_geometry(
        block, blocks, documents, n_queries, n_queries, n_keys, BLOCK_M, PACKED
    )
    own_keys = k_stop - k_start
    shift = own_keys - (q_stop - q_start) - q_start
    rows = row + tl.arange(0, BLOCK_M)
    q_tile = load_tile(
        head_pointer(q, batch, head, stride_qb, stride_qh, False), batch, head, row, row, stop, stride_qt,
        D, BLOCK_M, BLOCK_D, False, False,
    )  # fmt: skip
    d_tile = load_tile(
        head_pointer(d_out, batch, head, stride_db, stride_dh, False), batch, head, row, row, stop, stride_dt,
        D, BLOCK_M, BLOCK_D, False, False,
    )  # fmt: skip
    rows_at = (batch.to(tl.int64) * n_heads + head) * n_queries + rows
    lse_row = tl.load(lse2 + rows_at, mask=rows < stop, other=float("inf"))
    delta_row = tl.load(delta + rows_at, mask=rows < stop, other=0.0)
    keys = head_pointer(k, batch, head // GROUP, stride_kb, stride_kh, USE_TMA)
    values = head_pointer(v, batch, head // GROUP, stride_vb, stride_vh, USE_TMA)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    i = rows + shift
    low, high = interval_bounds(i, own_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK)
    low_first, high_first = interval_bounds(
        row + shift, own_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK
    )
    low_last, high_last = interval_bounds(
        stop - 1 + shift, own_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK
    )
    begin = low_first // BLOCK_N * BLOCK_N
    if not HAS_INTERVAL:
        high = low
        begin, high_last = 0, 0
    n = tl.arange(0, BLOCK_N)
    for start in tl.range(begin, high_last, BLOCK_N):
        token = k_start + start
        k_tile = load_tile(
            keys, batch, head // GROUP, token, k_start, k_stop, stride_kt, D, BLOCK_N, BLOCK_D, USE_TMA, PACKED
        )
        v_tile = load_tile(
            values, batch, head // GROUP, token, k_start, k_stop, stride_vt, D, BLOCK_N, BLOCK_D, USE_TMA, PACKED
        )
        logits = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        weights = tl.exp2(logits * scale2 - lse_row[:, None])
        if (start < low_last) | (start + BLOCK_N > high_first):
            keep = (low[:, None] <= (start + n)[None, :]) & ((start + n)[None, :] < high[:, None])
            weights = tl.where(keep, weights, 0.0)
        d_logits = weights * (tl.dot(d_tile, tl.trans(v_tile), input_precision=PRECISION) - delta_row[:, None])
        acc = tl.dot(d_logits.to(k_tile.dtype), k_tile, acc, input_precision=PRECISION)

    if BLOCK_C > 0:
        column_keys = head_pointer(column_k, batch, head // GROUP, stride_cb, stride_ch, False)
        column_values = head_pointer(column_v, batch, head // GROUP, stride_cb, stride_ch, False)
        for side in tl.static_range(2):
            c_start = tl.load(column_ranges + 4 * block + 2 * side)
            c_stop = tl.load(column_ranges + 4 * block + 2 * side + 1)
            for c in tl.range(c_start, c_stop, BLOCK_C):
                k_tile = load_tile(column_keys, batch, head, c, c, c_stop, stride_ct, D, BLOCK_C, BLOCK_D, False, False)
                v_tile = load_tile(
                    column_values, batch, head, c, c, c_stop, stride_ct, D, BLOCK_C, BLOCK_D, False, False
                )
                at = load_positions(column_positions, c, c_stop, BLOCK_C)
                keep = column_keep(at, i, low, high, column_left, column_right)
                logits = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
                # Hidden before the power is taken: a row without keys has LSE -inf, and 2^inf times 0 is NaN.
                weights = tl.exp2(tl.where(keep, logits * scale2 - lse_row[:, None], float("-inf")))
                d_weights = tl.dot(d_tile, tl.trans(v_tile), input_precision=PRECISION)
                d_logits = weights * (d_weights - delta_row[:, None])
                acc = tl.dot(d_logits.to(k_tile.dtype), k_tile, acc, input_precision=PRECISION)

    d = tl.arange(0, BLOCK_D)
    at = head_pointer(dq, batch, head, stride_gb, stride_gh, False) + (rows.to(tl.int64) * stride_gt)[:, None]
    tl.store(at + d[None, :], (acc * scale).to(dq.dtype.element_ty), mask=(rows < stop)[:, None] & (d < D)[None, :])


def backward_queries(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_out: Tensor,
    lse2: Tensor,
    delta: Tensor,
    where: Geometry,
    scale: float,
    capability: tuple[int, int],
) -> Tensor:
    """dq in q's dtype."""
    batch, n_queries, n_heads, head_dim = q.shape
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    tile = backward_queries_tile(capability, head_dim, q.dtype)
    n_blocks, blocks, documents = where.blocks(tile.m, "q", q.device)
    if n_blocks * batch == 0:
        return dq
    use_tma = can_use_tma(capability, k, v)
    columns = gather_columns(k, v, where, tile.m)
    backward_queries_kernel[(n_blocks * n_heads, batch)](
        q, tile_source(k, tile.n, use_tma), tile_source(v, tile.n, use_tma), d_out, lse2, delta, dq, blocks, documents,
        *columns.tensors,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *d_out.stride()[:3], *dq.stride()[:3], *columns.strides,
        n_blocks, n_queries, k.shape[1], n_heads, scale, scale * LOG2_E, *where.interval, columns.left, columns.right,
        HAS_INTERVAL=where.has_interval, HAS_CHUNK=where.has_chunk, BLOCK_C=columns.block(tile.n),
        PACKED=where.packed, GROUP=n_heads // k.shape[2], D=head_dim,
        BLOCK_D=padded_head_dim(head_dim), BLOCK_M=tile.m, BLOCK_N=tile.n, USE_TMA=use_tma,
        PRECISION=precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dq
