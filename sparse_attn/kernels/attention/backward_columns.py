"""Backward kernel for columns: a tile of gathered keys stays, all queries that see it walk past.

Few columns are seen by very many queries, so that the queries are split among programs; each writes a sum of its own in
float32, and the sums are added in one fixed order: no atomics, the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .columns import column_keep, load_positions
from .geometry import Geometry
from .interval import block_geometry, head_pointer, interval_bounds, load_tile
from .tiles import LOG2_E, backward_columns_tile, padded_head_dim, precision

_ROWS_A_SPLIT = 1024  # fewer rows than this are not worth a sum of their own
_PROGRAMS = 1024  # enough to fill the largest GPUs several times


@triton.jit
def backward_columns_kernel(
    q, k, v, d_out, lse2, delta, dk, dv, blocks, documents, positions,
    stride_qb, stride_qt, stride_qh, stride_cb, stride_ct, stride_ch, stride_db, stride_dt, stride_dh,
    stride_gs, stride_gb, stride_gt, stride_gh,
    n_columns, n_queries, n_keys, n_kv_heads, n_splits, scale, scale2, left, right, chunk, chunk_left, chunk_right,
    column_left, column_right,
    HAS_INTERVAL: tl.constexpr, HAS_CHUNK: tl.constexpr, PACKED: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program, split, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_head = program % n_kv_heads
    c, c_stop, q_start, q_stop, k_start, k_stop = block_geometry(
        program // n_kv_heads, blocks, documents, n_columns, n_queries, n_keys, BLOCK_N, PACKED
    )
    own_keys = k_stop - k_start
    first_query = own_keys - (q_stop - q_start)
    shift = q_start - first_query
    at = load_positions(positions, c, c_stop, BLOCK_N)
    k_tile = load_tile(
        head_pointer(k, batch, kv_head, stride_cb, stride_ch, False), batch, kv_head, c, c, c_stop, stride_ct,
        D, BLOCK_N, BLOCK_D, False, False,
    )  # fmt: skip
    v_tile = load_tile(
        head_pointer(v, batch, kv_head, stride_cb, stride_ch, False), batch, kv_head, c, c, c_stop, stride_ct,
        D, BLOCK_N, BLOCK_D, False, False,
    )  # fmt: skip
    dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    # This split's share of the queries that see any of the columns.
    low_query = tl.maximum(tl.load(positions + c) - column_right, first_query)
    high_query = tl.minimum(tl.load(positions + c_stop - 1) + column_left, own_keys)
    share = (tl.maximum(high_query - low_query, 0) + n_splits * BLOCK_M - 1) // (n_splits * BLOCK_M) * BLOCK_M
    begin = low_query + split * share
    end = tl.minimum(begin + share, high_query)
    m = tl.arange(0, BLOCK_M)
    for g in range(GROUP):
        head = kv_head * GROUP + g
        q_head = head_pointer(q, batch, head, stride_qb, stride_qh, False)
        d_head = head_pointer(d_out, batch, head, stride_db, stride_dh, False)
        rows_at = (batch.to(tl.int64) * n_kv_heads * GROUP + head) * n_queries
        for start in tl.range(begin, end, BLOCK_M):
            row = start + shift
            q_tile = load_tile(q_head, batch, head, row, q_start, q_stop, stride_qt, D, BLOCK_M, BLOCK_D, False, False)
            d_tile = load_tile(d_head, batch, head, row, q_start, q_stop, stride_dt, D, BLOCK_M, BLOCK_D, False, False)
            inside = (row + m < q_stop) & (start + m < end)
            lse_row = tl.load(lse2 + rows_at + row + m, mask=inside, other=float("inf"))
            delta_row = tl.load(delta + rows_at + row + m, mask=inside, other=0.0)
            i = start + m
            low, high = interval_bounds(i, own_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK)
            if not HAS_INTERVAL:
                high = low
            keep = tl.trans(column_keep(at, i, low, high, column_left, column_right)) & inside[None, :]
            logits = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
            weights = tl.exp2(tl.where(keep, logits * scale2 - lse_row[None, :], float("-inf")))
            dv_acc = tl.dot(weights.to(d_tile.dtype), d_tile, dv_acc, input_precision=PRECISION)
            d_logits = weights * (tl.dot(v_tile, tl.trans(d_tile), input_precision=PRECISION) - delta_row[None, :])
            dk_acc = tl.dot(d_logits.to(q_tile.dtype), q_tile, dk_acc, input_precision=PRECISION)

    d = tl.arange(0, BLOCK_D)
    columns = c + tl.arange(0, BLOCK_N)
    inside_tile = (columns < c_stop)[:, None] & (d < D)[None, :]
    offset = split.to(tl.int64) * stride_gs + (columns.to(tl.int64) * stride_gt)[:, None] + d[None, :]
    tl.store(head_pointer(dk, batch, kv_head, stride_gb, stride_gh, False) + offset, dk_acc * scale, mask=inside_tile)
    tl.store(head_pointer(dv, batch, kv_head, stride_gb, stride_gh, False) + offset, dv_acc, mask=inside_tile)


def add_backward_columns(
    dk: Tensor,
    dv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_out: Tensor,
    lse2: Tensor,
    delta: Tensor,
    where: Geometry,
    scale: float,
    capability: tuple[int, int],
) -> None:
    """Add the columns' share to dk and dv, in place."""
    columns = where.columns(k.device)
    if columns is None or dk.numel() == 0:
        return
    batch, n_queries, n_heads, head_dim = q.shape
    n_keys, n_kv_heads = k.shape[1:3]
    tile = backward_columns_tile(capability, head_dim, q.dtype)
    n_blocks, blocks, documents = where.blocks(tile.n, "c", q.device)
    n_splits = max(1, min(n_queries // _ROWS_A_SPLIT, _PROGRAMS // (n_blocks * n_kv_heads * batch)))
    keys, values = (x.index_select(1, columns.tokens) for x in (k, v))
    sums = torch.empty((2, n_splits, *keys.shape), dtype=torch.float32, device=k.device)
    backward_columns_kernel[(n_blocks * n_kv_heads, n_splits, batch)](
        q, keys, values, d_out, lse2, delta, sums[0], sums[1], blocks, documents, columns.positions,
        *q.stride()[:3], *keys.stride()[:3], *d_out.stride()[:3], *sums.stride()[1:5],
        columns.count, n_queries, n_keys, n_kv_heads, n_splits, scale, scale * LOG2_E, *where.interval,
        columns.left, columns.right,
        HAS_INTERVAL=where.has_interval, HAS_CHUNK=where.has_chunk, PACKED=where.packed, GROUP=n_heads // n_kv_heads,
        D=head_dim, BLOCK_D=padded_head_dim(head_dim), BLOCK_M=tile.m, BLOCK_N=tile.n, PRECISION=precision(q.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    for target, total in zip((dk, dv), sums.sum(1), strict=True):
        both = target.index_select(1, columns.tokens).float() + total
        target.index_copy_(1, columns.tokens, both.to(target.dtype))
