"""Forward kernel: a tile of queries walks along its interval of keys, with a running softmax.

For each tile of keys, with logits s = log2(e) * scale * q k^T and a row's maximum m, sum z and output a so far:

    m' = max(m, max s);  c = 2^(m - m');  p = 2^(s - m');  z' = c z + sum p;  a' = c a + p v

and at the end out = a / z, LSE = ln(2) * (m + log2 z). The interval is walked in three loops: tiles that its left edge
cuts (masked), tiles that all rows see (no mask is even computed), tiles that its right edge cuts (masked); then come the
columns, gathered into a tensor of their own, of which a block reads one run before its interval and one after it.
Accumulators and statistics live in registers, tiles of keys and values in shared memory; bound by the tensor cores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .columns import column_keep, load_positions
from .gathered import gather_columns
from .geometry import Geometry
from .interval import block_geometry, head_pointer, interval_bounds, load_tile
from .online_softmax import online_softmax_step
from .tiles import LOG2_E, can_use_tma, forward_tile, padded_head_dim, precision, tile_source


@triton.jit
def forward_kernel(
    q, k, v, out, lse, blocks, documents, column_k, column_v, column_positions, column_ranges,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_ob, stride_ot, stride_oh, stride_cb, stride_ct, stride_ch,
    n_blocks, n_queries, n_keys, n_heads, scale, left, right, chunk, chunk_left, chunk_right,
    column_left, column_right,
    HAS_INTERVAL: tl.constexpr, HAS_CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, PACKED: tl.constexpr,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, NEGATE: tl.constexpr, USE_TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Heads of one block run together, so that those of a group share its keys in the cache; late blocks, which have
    # most keys under causal attention without a window, come first.
    program, batch = tl.program_id(0), tl.program_id(1)
    head = program % n_heads
    block = n_blocks - 1 - program // n_heads
    row, stop, q_start, q_stop, k_start, k_stop = block_geometry(
        block, blocks, documents, n_queries, n_queries, n_keys, BLOCK_M, PACKED
    )
    own_keys = k_stop - k_start
    shift = own_keys - (q_stop - q_start) - q_start  # from a row to its position in the document
    first, last = row + shift, stop - 1 + shift
    rows = row + tl.arange(0, BLOCK_M)
    i = rows + shift

    queries = load_tile(
        head_pointer(q, batch, head, stride_qb, stride_qh, False), batch, head, row, row, stop, stride_qt,
        D, BLOCK_M, BLOCK_D, False, False,
    )  # fmt: skip
    if NEGATE:
        queries = -queries
    keys = head_pointer(k, batch, head // GROUP, stride_kb, stride_kh, USE_TMA)
    values = head_pointer(v, batch, head // GROUP, stride_vb, stride_vh, USE_TMA)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # The interval, tile by tile.
    low, high = interval_bounds(i, own_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK)
    if not HAS_INTERVAL:
        high = low
    low_first, high_first = interval_bounds(first, own_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK)
    low_last, high_last = interval_bounds(last, own_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK)
    begin = low_first // BLOCK_N * BLOCK_N
    inner_begin = tl.minimum((low_last + BLOCK_N - 1) // BLOCK_N * BLOCK_N, high_last)
    inner_end = tl.maximum(high_first // BLOCK_N * BLOCK_N, inner_begin)
    if not HAS_INTERVAL:
        begin, inner_begin, inner_end, high_last = 0, 0, 0, 0
    n = tl.arange(0, BLOCK_N)
    for start in tl.range(begin, inner_begin, BLOCK_N):
        token = k_start + start
        k_tile = load_tile(
            keys, batch, head // GROUP, token, k_start, k_stop, stride_kt, D, BLOCK_N, BLOCK_D, USE_TMA, False
        )
        v_tile = load_tile(
            values, batch, head // GROUP, token, k_start, k_stop, stride_vt, D, BLOCK_N, BLOCK_D, USE_TMA, PACKED
        )
        keep = (low[:, None] <= (start + n)[None, :]) & ((start + n)[None, :] < high[:, None])
        acc, top, total = online_softmax_step(queries, k_tile, v_tile, keep, acc, top, total, scale, True, PRECISION)
    for start in tl.range(inner_begin, inner_end, BLOCK_N):
        token = k_start + start
        k_tile = load_tile(
            keys, batch, head // GROUP, token, k_start, k_stop, stride_kt, D, BLOCK_N, BLOCK_D, USE_TMA, False
        )
        v_tile = load_tile(
            values, batch, head // GROUP, token, k_start, k_stop, stride_vt, D, BLOCK_N, BLOCK_D, USE_TMA, False
        )
        acc, top, total = online_softmax_step(queries, k_tile, v_tile, True, acc, top, total, scale, False, PRECISION)
    for start in tl.range(inner_end, high_last, BLOCK_N):
        token = k_start + start
        k_tile = load_tile(
            keys, batch, head // GROUP, token, k_start, k_stop, stride_kt, D, BLOCK_N, BLOCK_D, USE_TMA, False
        )
        v_tile = load_tile(
            values, batch, head // GROUP, token, k_start, k_stop, stride_vt, D, BLOCK_N, BLOCK_D, USE_TMA, PACKED
        )
        keep = (low[:, None] <= (start + n)[None, :]) & ((start + n)[None, :] < high[:, None])
        acc, top, total = online_softmax_step(queries, k_tile, v_tile, keep, acc, top, total, scale, True, PRECISION)

    # Columns: the run before the interval, then the run after it.
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
                acc, top, total = online_softmax_step(
                    queries, k_tile, v_tile, keep, acc, top, total, scale, True, PRECISION
                )

    # Output and LSE; a query without keys gets 0 and -inf.
    d = tl.arange(0, BLOCK_D)
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out_at = head_pointer(out, batch, head, stride_ob, stride_oh, False) + (rows.to(tl.int64) * stride_ot)[:, None]
    tl.store(out_at + d[None, :], acc.to(out.dtype.element_ty), mask=(rows < stop)[:, None] & (d < D)[None, :])
    lse_at = lse + (batch.to(tl.int64) * n_queries + rows) * n_heads + head
    tl.store(lse_at, (top + tl.log2(tl.maximum(total, 1.0))) * 0.6931471805599453, mask=rows < stop)


def forward(
    q: Tensor, k: Tensor, v: Tensor, where: Geometry, scale: float, capability: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Output in q's dtype and LSE ``[B, T, Hq]`` in float32; q, k and v ``[B, T, Hq, D]``, rows contiguous."""
    batch, n_queries, n_heads, head_dim = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((batch, n_queries, n_heads), dtype=torch.float32, device=q.device)
    tile = forward_tile(capability, head_dim, q.dtype)
    n_blocks, blocks, documents = where.blocks(tile.m, "q", q.device)
    if n_blocks * batch == 0:
        return out, lse
    use_tma = can_use_tma(capability, k, v)
    columns = gather_columns(k, v, where, tile.m)
    forward_kernel[(n_blocks * n_heads, batch)](
        q, tile_source(k, tile.n, use_tma), tile_source(v, tile.n, use_tma), out, lse, blocks, documents,
        *columns.tensors,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *columns.strides,
        n_blocks, n_queries, k.shape[1], n_heads, abs(scale) * LOG2_E, *where.interval, columns.left, columns.right,
        HAS_INTERVAL=where.has_interval, HAS_CHUNK=where.has_chunk, BLOCK_C=columns.block(tile.n),
        PACKED=where.packed, GROUP=n_heads // k.shape[2], D=head_dim,
        BLOCK_D=padded_head_dim(head_dim), BLOCK_M=tile.m, BLOCK_N=tile.n, NEGATE=scale < 0, USE_TMA=use_tma,
        PRECISION=precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, lse
