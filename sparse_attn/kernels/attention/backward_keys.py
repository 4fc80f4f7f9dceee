"""Backward kernel for keys and values: a tile of keys stays, the queries that see it walk past.

    s = log2(e) * scale * k q^T;  p = 2^(s - lse2);  dv = sum p dout
    dk = scale * sum ds q,  ds = p * (v dout^T - delta)

All sums run over the query heads of a group and the queries of the tile's span, inside one program and in one order: no
atomics, and the same bits every time. Everything is transposed, keys down and queries across, so that p and ds enter
their products as they stand. One loop serves masked and unmasked tiles: three would hold more registers than there are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Geometry
from .interval import block_geometry, head_pointer, interval_bounds, load_tile, query_bounds
from .tiles import LOG2_E, backward_keys_tile, can_use_tma, padded_head_dim, precision, tile_source


@triton.jit
def backward_keys_kernel(
    q, k, v, d_out, lse2, delta, dk, dv, blocks, documents,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, stride_gb, stride_gt, stride_gh,
    n_queries, n_keys, n_kv_heads, scale, scale2, left, right, chunk, chunk_left, chunk_right,
    HAS_CHUNK: tl.constexpr, PACKED: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program, batch = tl.program_id(0), tl.program_id(1)
    kv_head = program % n_kv_heads
    token, stop, q_start, q_stop, k_start, k_stop = block_geometry(
        program // n_kv_heads, blocks, documents, n_keys, n_queries, n_keys, BLOCK_N, PACKED
    )
    own_keys = k_stop - k_start
    first_query = own_keys - (q_stop - q_start)  # position of the document's first query
    shift = q_start - first_query  # from a position to its row
    tokens = token + tl.arange(0, BLOCK_N)
    j = tokens - k_start
    k_tile = load_tile(
        head_pointer(k, batch, kv_head, stride_kb, stride_kh, False), batch, kv_head, token, token, stop, stride_kt,
        D, BLOCK_N, BLOCK_D, False, False,
    )  # fmt: skip
    v_tile = load_tile(
        head_pointer(v, batch, kv_head, stride_vb, stride_vh, False), batch, kv_head, token, token, stop, stride_vt,
        D, BLOCK_N, BLOCK_D, False, False,
    )  # fmt: skip
    dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    low_first, high_first = query_bounds(
        token - k_start, first_query, own_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK
    )
    low_last, high_last = query_bounds(
        stop - 1 - k_start, first_query, own_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK
    )
    m = tl.arange(0, BLOCK_M)
    for g in range(GROUP):
        head = kv_head * GROUP + g
        q_head = head_pointer(q, batch, head, stride_qb, stride_qh, USE_TMA)
        d_head = head_pointer(d_out, batch, head, stride_db, stride_dh, USE_TMA)
        rows_at = (batch.to(tl.int64) * n_kv_heads * GROUP + head) * n_queries
        for start in tl.range(low_first, high_last, BLOCK_M):
            row = start + shift
            q_tile = load_tile(
                q_head, batch, head, row, q_start, q_stop, stride_qt, D, BLOCK_M, BLOCK_D, USE_TMA, PACKED
            )
            d_tile = load_tile(
                d_head, batch, head, row, q_start, q_stop, stride_dt, D, BLOCK_M, BLOCK_D, USE_TMA, PACKED
            )
            inside = row + m < q_stop
            lse_row = tl.load(lse2 + rows_at + row + m, mask=inside, other=float("inf"))  # weight 0 past the end
            delta_row = tl.load(delta + rows_at + row + m, mask=inside, other=0.0)
            weights = tl.exp2(tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * scale2 - lse_row[None, :])
            if (start < low_last) | (start + BLOCK_M > high_first):
                low, high = interval_bounds(start + m, own_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK)
                keep = (low[None, :] <= j[:, None]) & (j[:, None] < high[None, :])
                weights = tl.where(keep, weights, 0.0)
            dv_acc = tl.dot(weights.to(d_tile.dtype), d_tile, dv_acc, input_precision=PRECISION)
            d_logits = weights * (tl.dot(v_tile, tl.trans(d_tile), input_precision=PRECISION) - delta_row[None, :])
            dk_acc = tl.dot(d_logits.to(q_tile.dtype), q_tile, dk_acc, input_precision=PRECISION)

    d = tl.arange(0, BLOCK_D)
    at = (tokens.to(tl.int64) * stride_gt)[:, None] + d[None, :]
    inside_tile = (tokens < stop)[:, None] & (d < D)[None, :]
    dk_at = head_pointer(dk, batch, kv_head, stride_gb, stride_gh, False) + at
    dv_at = head_pointer(dv, batch, kv_head, stride_gb, stride_gh, False) + at
    tl.store(dk_at, (dk_acc * scale).to(dk.dtype.element_ty), mask=inside_tile)
    tl.store(dv_at, dv_acc.to(dv.dtype.element_ty), mask=inside_tile)


def backward_keys(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_out: Tensor,
    lse2: Tensor,
    delta: Tensor,
    where: Geometry,
    scale: float,
    capability: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """dk and dv in k's dtype, from the queries whose interval holds the key."""
    batch, n_queries, n_heads, head_dim = q.shape
    n_keys, n_kv_heads = k.shape[1:3]
    dk, dv = (torch.empty_like(k, memory_format=torch.contiguous_format) for _ in range(2))
    if not where.has_interval:
        return dk.zero_(), dv.zero_()
    tile = backward_keys_tile(capability, head_dim, q.dtype)
    n_blocks, blocks, documents = where.blocks(tile.n, "k", q.device)
    if n_blocks * batch == 0:
        return dk, dv
    use_tma = can_use_tma(capability, q, d_out)
    backward_keys_kernel[(n_blocks * n_kv_heads, batch)](
        tile_source(q, tile.m, use_tma), k, v, tile_source(d_out, tile.m, use_tma), lse2, delta, dk, dv,
        blocks, documents,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *d_out.stride()[:3], *dk.stride()[:3],
        n_queries, n_keys, n_kv_heads, scale, scale * LOG2_E, *where.interval,
        HAS_CHUNK=where.has_chunk, PACKED=where.packed, GROUP=n_heads // n_kv_heads, D=head_dim,
        BLOCK_D=padded_head_dim(head_dim), BLOCK_M=tile.m, BLOCK_N=tile.n, USE_TMA=use_tma,
        PRECISION=precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dk, dv
