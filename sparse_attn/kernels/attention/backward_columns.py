"""Backward kernel for columns: a tile of gathered keys stays, all queries that see it walk past.

Few columns are seen by very many queries, so that the queries are split among programs in equal shares; each writes a sum
of its own in float32, and the sums of a tile are added in one fixed order: no atomics, the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backward_keys import key_gradient_step
from .blocks import document_bounds, head_pointer, load_rows, load_tile, readable_rows
from .column_sums import add_column_sums
from .geometry import Geometry
from .interval import row_bounds
from .launch import Gradients, Inputs, gather_columns, lengths_of, shared_arguments
from .named import in_columns
from .tiles import LOG2_E, Capability, backward_columns_tile, can_use_tma, padded_head_dim, precision, tile_source

_ROWS_A_SPLIT = 1024  # fewer rows than this are not worth a sum of their own
_PROGRAMS = 1024  # enough to fill the largest GPUs several times
_SHARE = 0.007  # of the memory that the call's tensors take: as much may the sums take


@triton.jit(do_not_specialize=lengths_of("backward_columns"))
def backward_columns_kernel(
    q, k, v, d_out, lse2, delta, dk, dv, blocks, documents, parameters, row_bits, key_bits, positions, column_tokens,
    stride_qb, stride_qt, stride_qh, stride_cb, stride_ct, stride_ch, stride_db, stride_dt, stride_dh,
    stride_gs, stride_gb, stride_gt, stride_gh, stride_row,
    n_blocks, n_keys, offset, n_kv_heads, scale, scale2, left, right,
    HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNCUT: tl.constexpr, PACKED: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    kv_head = program % n_kv_heads
    block = program // n_kv_heads % n_blocks
    batch = program // n_kv_heads // n_blocks
    document, group = tl.load(blocks + 6 * block), tl.load(blocks + 6 * block + 1)
    c, c_stop = tl.load(blocks + 6 * block + 2), tl.load(blocks + 6 * block + 3)
    split, n_splits = tl.load(blocks + 6 * block + 4), tl.load(blocks + 6 * block + 5)
    q_start, own_keys, first_query = 0, n_keys, offset
    if PACKED:
        q_start, _, own_keys, first_query = document_bounds(documents, document)
    shift = q_start - first_query
    columns = c + tl.arange(0, BLOCK_N)
    here = columns < c_stop
    at = tl.load(positions + columns, mask=here, other=0)
    limits = parameters + 3 * CHUNKS + 2 * ROWS
    cut_left, cut_right = tl.load(limits + 2 * group), tl.load(limits + 2 * group + 1)
    k_tile = load_rows(
        head_pointer(k, batch, kv_head, stride_cb, stride_ch, False), columns, here, stride_ct, D, BLOCK_D
    )
    v_tile = load_rows(
        head_pointer(v, batch, kv_head, stride_cb, stride_ch, False), columns, here, stride_ct, D, BLOCK_D
    )
    dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # Columns of an earlier group that are in this one too count there: one bit for each earlier group.
    bits = tl.zeros([BLOCK_N], tl.int32)
    if COLUMNS > 1:
        token = tl.load(column_tokens + columns, mask=here, other=0)
        bits = tl.load(key_bits + token, mask=here, other=0) & ((1 << group) - 1)

    # This split's share of the queries that see any of the columns.
    first_column, last_column = tl.load(positions + c), tl.load(positions + c_stop - 1)
    low_query = tl.maximum(first_column - cut_right, first_query)
    high_query = tl.minimum(last_column + cut_left, own_keys)
    share = (tl.maximum(high_query - low_query, 0) + n_splits * BLOCK_M - 1) // (n_splits * BLOCK_M) * BLOCK_M
    begin = low_query + split * share
    end = tl.minimum(begin + share, high_query)
    rows_stop = readable_rows(first_query, own_keys, PACKED)
    m = tl.arange(0, BLOCK_M)
    for g in range(GROUP):
        head = kv_head * GROUP + g
        q_head = head_pointer(q, batch, head, stride_qb, stride_qh, USE_TMA)
        d_head = head_pointer(d_out, batch, head, stride_db, stride_dh, USE_TMA)
        rows_at = (batch.to(tl.int64) * n_kv_heads * GROUP + head) * stride_row
        for start in tl.range(begin, end, BLOCK_M):
            q_tile = load_tile(
                q_head, batch, head, 0, start, first_query, own_keys, shift, 1, stride_qt,
                D, BLOCK_M, BLOCK_D, USE_TMA, PACKED, False,
            )  # fmt: skip
            d_tile = load_tile(
                d_head, batch, head, 0, start, first_query, own_keys, shift, 1, stride_dt,
                D, BLOCK_M, BLOCK_D, USE_TMA, PACKED, False,
            )  # fmt: skip
            i = start + m
            inside = i < end
            rows = i + shift
            readable = i < rows_stop
            lse_row = tl.load(lse2 + rows_at + rows, mask=readable, other=float("inf"))
            delta_row = tl.load(delta + rows_at + rows, mask=readable, other=0.0)
            low, high = row_bounds(
                i, own_keys, left, right, parameters, row_bits, rows, inside, HAS_INTERVAL, CHUNKS, ROWS
            )
            keep = (at[:, None] > (i - cut_left)[None, :]) & (at[:, None] <= (i + cut_right)[None, :])
            keep = keep & ((at[:, None] < low[None, :]) | (at[:, None] >= high[None, :]))
            keep = keep & here[:, None] & inside[None, :]
            if COLUMNS > 1:
                keep = keep & (in_columns(i[None, :], at[:, None], bits[:, None], limits, COLUMNS, UNCUT) == 0)
            dk_acc, dv_acc = key_gradient_step(
                k_tile, v_tile, q_tile, d_tile, lse_row, delta_row, keep, dk_acc, dv_acc, scale2, True, PRECISION
            )

    d = tl.arange(0, BLOCK_D)
    stored = here[:, None] & (d < D)[None, :]
    offset = block.to(tl.int64) * stride_gs + (tl.arange(0, BLOCK_N) * stride_gt)[:, None] + d[None, :]
    tl.store(head_pointer(dk, batch, kv_head, stride_gb, stride_gh, False) + offset, dk_acc * scale, mask=stored)
    tl.store(head_pointer(dv, batch, kv_head, stride_gb, stride_gh, False) + offset, dv_acc, mask=stored)


def add_backward_columns(
    dk: Tensor,
    dv: Tensor,
    inputs: Inputs,
    gradients: Gradients,
    where: Geometry,
    scale: float,
    capability: Capability,
) -> None:
    """Add the columns' share to dk and dv, in place. Memory: one sum for each block of columns, and as many
    further ones as take at most `_SHARE` of what the tensors of the call take."""
    q, d_out = inputs.q, gradients.d_out
    columns = where.column_tables(q.device) if dk.numel() and q.numel() and where.main else None
    if columns is None or where.main is None:
        return
    positions, tokens = columns
    batch, n_queries, n_heads, head_dim = q.shape
    n_keys, n_kv_heads = inputs.k.shape[1:3]
    tile = backward_columns_tile(capability, head_dim, q.dtype)
    keys, values = gather_columns(inputs, where)
    most = max(1, min(_PROGRAMS // (n_kv_heads * batch), affordable_splits(inputs, tile.n, _SHARE)))
    blocks, places, groups = where.column_blocks(tile.n, most, _ROWS_A_SPLIT, q.device)
    sums = torch.empty((len(blocks), 2, batch, tile.n, n_kv_heads, head_dim), dtype=torch.float32, device=q.device)
    use_tma = can_use_tma(capability, where, where.main, q, d_out)
    shared = shared_arguments(where, where.main, q.device)
    backward_columns_kernel[(len(blocks) * n_kv_heads * batch,)](
        tile_source(q, tile.m, use_tma), keys, values, tile_source(d_out, tile.m, use_tma),
        gradients.lse2, gradients.delta, sums[:, 0], sums[:, 1],
        blocks=blocks, positions=positions, column_tokens=tokens,
        n_blocks=len(blocks), n_keys=n_keys, offset=n_keys - n_queries, n_kv_heads=n_kv_heads,
        stride_qb=q.stride(0), stride_qt=q.stride(1), stride_qh=q.stride(2),
        stride_cb=keys.stride(0), stride_ct=keys.stride(1), stride_ch=keys.stride(2),
        stride_db=d_out.stride(0), stride_dt=d_out.stride(1), stride_dh=d_out.stride(2),
        stride_gs=sums.stride(0), stride_gb=sums.stride(2), stride_gt=sums.stride(3), stride_gh=sums.stride(4),
        stride_row=gradients.lse2.stride(1), scale=scale, scale2=scale * LOG2_E, GROUP=n_heads // n_kv_heads,
        D=head_dim, BLOCK_D=padded_head_dim(head_dim), BLOCK_M=tile.m, BLOCK_N=tile.n, USE_TMA=use_tma,
        PRECISION=precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages,
        **{name: shared[name] for name in backward_columns_kernel.arg_names if name in shared},
    )  # fmt: skip
    add_column_sums(dk, dv, sums, places, tokens, groups)


def affordable_splits(inputs: Inputs, columns: int, share: float) -> int:
    """For how many splits the sums of so many columns take at most this share of the memory of a call's tensors."""
    q, k = inputs.q, inputs.k
    given = 4 * (q.numel() + k.numel()) * q.element_size()  # inputs, output and all gradients
    return int(share * given / (8 * columns * k.shape[0] * k.shape[2] * k.shape[3]))
