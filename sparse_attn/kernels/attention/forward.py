"""Forward kernel: a tile of queries walks along its keys, part by part, with one running softmax.

For each tile of keys, with logits s = log2(e) * scale * q k^T and a row's maximum m, sum z and output a so far:

    m' = max(m, max s);  c = 2^(m - m');  p = 2^(s - m');  z' = c z + sum p;  a' = c a + p v

and at the end out = a / z, LSE = ln(2) * (m + log2 z). The interval is walked in three loops: tiles that its left edge
cuts (masked), tiles that all rows see (no mask is even computed), tiles that its right edge cuts (masked). Then come the
columns, gathered into tensors of their own, of which a block reads a run before its interval and one after it; the
listed key blocks, one entry after the other; and the extra keys of the rows' blocks.

A dilated pass walks its own grid the same way. It takes up the softmax where the pass before it ended: the output is
a / z, and the LSE stands for m with z = 1. Accumulators and statistics live in registers, tiles of keys and values in
shared memory; bound by the tensor cores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import head_pointer, load_rows, load_tile, locate_block
from .geometry import Geometry, Walk
from .interval import row_bounds, tile_bounds, tiles_beside_interval
from .launch import Inputs, key_arguments, lengths_of, shared_arguments
from .named import column_keep, list_keep, named_before_pass
from .online_softmax import online_softmax_step
from .tiles import LOG2_E, Capability, can_use_tma, forward_tile, padded_head_dim, precision, tile_source


@triton.jit(do_not_specialize=lengths_of("forward"))
def forward_kernel(
    q, k, v, list_k, list_v, out, lse, extra_k, extra_v, column_k, column_v,
    blocks, documents, parameters, row_bits, key_bits, column_positions, column_tokens, column_ranges,
    list_rows, list_begins, list_entries,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_ob, stride_ot, stride_oh, stride_cb, stride_ct, stride_ch, stride_eb, stride_et, stride_eh,
    n_blocks, n_documents, n_queries, n_keys, offset, n_heads, scale,
    left, right, step, hop_left, hop_right, extra_block,
    HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LISTS: tl.constexpr,
    UNCUT: tl.constexpr, SIDES: tl.constexpr, EXTRA: tl.constexpr, EARLIER: tl.constexpr, EXCLUDES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_E: tl.constexpr,
    TABLE: tl.constexpr, PACKED: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, NEGATE: tl.constexpr, USE_TMA: tl.constexpr, COLUMN_TMA: tl.constexpr,
    LIST_TMA: tl.constexpr, EXTRA_TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    # Heads of one block run together, so that those of a group share its keys in the cache; late blocks, which have
    # most keys under causal attention without a window, come first.
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

    queries = load_rows(
        head_pointer(q, batch, head, stride_qb, stride_qh, False), rows, inside, stride_qt, D, BLOCK_D
    )  # fmt: skip
    if NEGATE:
        queries = -queries
    keys = head_pointer(k, batch, kv_head, stride_kb, stride_kh, USE_TMA)
    values = head_pointer(v, batch, kv_head, stride_vb, stride_vh, USE_TMA)
    d = tl.arange(0, BLOCK_D)
    out_at = head_pointer(out, batch, head, stride_ob, stride_oh, False) + (rows.to(tl.int64) * stride_ot)[:, None]
    lse_at = lse + (batch.to(tl.int64) * n_queries + rows) * n_heads + head
    if EXCLUDES:  # earlier parts have written their result
        top = tl.load(lse_at, mask=inside, other=float("-inf")) * 1.4426950408889634
        total = tl.where(top == float("-inf"), 0.0, 1.0)
        acc = tl.load(out_at + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
    else:
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # The run of keys around each query: the interval, or the window of a dilated pass, in hops.
    low, high = row_bounds(
        i, own_keys, left, right, parameters, row_bits, rows, inside, HAS_INTERVAL, CHUNKS, ROWS
    )  # fmt: skip
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
    inner_begin = tl.minimum((last_low + BLOCK_N - 1) // BLOCK_N * BLOCK_N, end)
    inner_end = tl.maximum(first_high // BLOCK_N * BLOCK_N, inner_begin)
    n = tl.arange(0, BLOCK_N)
    behind_rows = parameters + 3 * CHUNKS + 2 * ROWS
    if EXCLUDES:
        # Every tile is masked, and those that lie in all rows' intervals are passed over.
        skip, resume, before = tiles_beside_interval(
            begin, end, low, high, inside, n_keys, residue, step, HAS_INTERVAL, BLOCK_N
        )
        for nth in tl.range(before + (end - resume + BLOCK_N - 1) // BLOCK_N):
            start = tl.where(nth < before, begin + nth * BLOCK_N, resume + (nth - before) * BLOCK_N)
            limit = tl.where(nth < before, skip, end)
            k_tile = load_tile(
                keys, batch, kv_head, residue, start, 0, n_x, base, step, stride_kt,
                D, BLOCK_N, BLOCK_D, USE_TMA, False, True,
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
            acc, top, total = online_softmax_step(
                queries, k_tile, v_tile, keep, acc, top, total, scale, True, PRECISION
            )
    else:
        if HAS_INTERVAL or ROWS > 0 or DILATED:
            for start in tl.range(begin, inner_begin, BLOCK_N):
                k_tile = load_tile(
                    keys, batch, kv_head, residue, start, 0, n_x, base, step, stride_kt,
                    D, BLOCK_N, BLOCK_D, USE_TMA, False, DILATED,
                )  # fmt: skip
                v_tile = load_tile(
                    values, batch, kv_head, residue, start, 0, n_x, base, step, stride_vt,
                    D, BLOCK_N, BLOCK_D, USE_TMA, PACKED, DILATED,
                )  # fmt: skip
                keep = (run_low[:, None] <= (start + n)[None, :]) & ((start + n)[None, :] < run_high[:, None])
                acc, top, total = online_softmax_step(
                    queries, k_tile, v_tile, keep, acc, top, total, scale, True, PRECISION
                )
            for start in tl.range(inner_begin, inner_end, BLOCK_N):
                k_tile = load_tile(
                    keys, batch, kv_head, residue, start, 0, n_x, base, step, stride_kt,
                    D, BLOCK_N, BLOCK_D, USE_TMA, False, DILATED,
                )  # fmt: skip
                v_tile = load_tile(
                    values, batch, kv_head, residue, start, 0, n_x, base, step, stride_vt,
                    D, BLOCK_N, BLOCK_D, USE_TMA, False, DILATED,
                )  # fmt: skip
                acc, top, total = online_softmax_step(
                    queries, k_tile, v_tile, True, acc, top, total, scale, False, PRECISION
                )
            for start in tl.range(inner_end, end, BLOCK_N):
                k_tile = load_tile(
                    keys, batch, kv_head, residue, start, 0, n_x, base, step, stride_kt,
                    D, BLOCK_N, BLOCK_D, USE_TMA, False, DILATED,
                )  # fmt: skip
                v_tile = load_tile(
                    values, batch, kv_head, residue, start, 0, n_x, base, step, stride_vt,
                    D, BLOCK_N, BLOCK_D, USE_TMA, PACKED, DILATED,
                )  # fmt: skip
                keep = (run_low[:, None] <= (start + n)[None, :]) & ((start + n)[None, :] < run_high[:, None])
                acc, top, total = online_softmax_step(
                    queries, k_tile, v_tile, keep, acc, top, total, scale, True, PRECISION
                )

    # Columns, group by group: the run before the interval, then the run after it; in each, a stretch needs no mask.
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
                        acc, top, total = online_softmax_step(
                            queries, k_tile, v_tile, True, acc, top, total, scale, False, PRECISION
                        )
                for c in tl.range(masked, masked_stop, BLOCK_C):
                    k_tile = load_tile(
                        column_keys, batch, kv_head, 0, c, 0, masked_stop, 0, 1, stride_ct,
                        D, BLOCK_C, BLOCK_D, COLUMN_TMA, False, False,
                    )  # fmt: skip
                    v_tile = load_tile(
                        column_values, batch, kv_head, 0, c, 0, masked_stop, 0, 1, stride_ct,
                        D, BLOCK_C, BLOCK_D, COLUMN_TMA, PACKED, False,
                    )  # fmt: skip
                    keep = column_keep(
                        i, low, high, c + tl.arange(0, BLOCK_C), masked_stop, column_positions, column_tokens, key_bits,
                        behind_rows, g, UNCUT,
                    )  # fmt: skip
                    acc, top, total = online_softmax_step(
                        queries, k_tile, v_tile, keep, acc, top, total, scale, True, PRECISION
                    )

    # Listed key blocks, entry by entry of the lists' rows that the tile touches.
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
                    D, BLOCK_L, BLOCK_D, LIST_TMA, False, False,
                )  # fmt: skip
                v_tile = load_tile(
                    list_values, batch, kv_head, 0, start, 0, key_stop, k_start, 1, stride_vt,
                    D, BLOCK_L, BLOCK_D, LIST_TMA, PACKED, False,
                )  # fmt: skip
                keep = list_keep(
                    i, low, high, inside, query_block, size, start + tl.arange(0, BLOCK_L), key_stop, k_start, key_bits,
                    document, n_documents, list_rows, list_begins, list_entries, behind_rows, number, COLUMNS, UNCUT,
                )  # fmt: skip
                acc, top, total = online_softmax_step(
                    queries, k_tile, v_tile, keep, acc, top, total, scale, True, PRECISION
                )

    # Extra keys of the blocks that the rows stand in.
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
                acc, top, total = online_softmax_step(
                    queries, k_tile, v_tile, True, acc, top, total, scale, False, PRECISION
                )
            extra_begin = free_stop
        for e in tl.range(extra_begin, extra_stop, BLOCK_E):
            k_tile = load_tile(
                extra_keys, batch, kv_head, 0, e, 0, extra_stop, extra_base, 1, stride_et,
                D, BLOCK_E, BLOCK_D, EXTRA_TMA, False, False,
            )  # fmt: skip
            v_tile = load_tile(
                extra_values, batch, kv_head, 0, e, 0, extra_stop, extra_base, 1, stride_et,
                D, BLOCK_E, BLOCK_D, EXTRA_TMA, PACKED, False,
            )  # fmt: skip
            keep = (i // extra_block)[:, None] == ((e + tl.arange(0, BLOCK_E)) // EXTRA)[None, :]
            acc, top, total = online_softmax_step(
                queries, k_tile, v_tile, keep, acc, top, total, scale, True, PRECISION
            )

    # Output and LSE; a query without keys gets 0 and -inf.
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out_at + d[None, :], acc.to(out.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])
    tl.store(lse_at, (top + tl.log2(tl.maximum(total, 1.0))) * 0.6931471805599453, mask=inside)


def forward(inputs: Inputs, where: Geometry, scale: float, capability: Capability) -> tuple[Tensor, Tensor]:
    """Output in q's dtype and LSE ``[B, T, Hq]`` in float32."""
    q = inputs.q
    batch, n_queries, n_heads, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((batch, n_queries, n_heads), dtype=torch.float32, device=q.device)
    if out.numel():
        for walk in where.walks:
            _forward_pass(inputs, out, lse, where, walk, scale, capability)
    return out, lse


def _forward_pass(
    inputs: Inputs, out: Tensor, lse: Tensor, where: Geometry, walk: Walk, scale: float, capability: Capability
) -> None:
    q, k, v = inputs.q, inputs.k, inputs.v
    batch, n_queries, n_heads, head_dim = q.shape
    tile = forward_tile(capability, head_dim, q.dtype, where.walked(walk))
    n_blocks, table = where.blocks(walk, tile.m, "q", q.device)
    if n_blocks == 0:
        return
    use_tma = can_use_tma(capability, where, walk, k, v)
    keys = key_arguments(inputs, where, walk, tile, capability)
    forward_kernel[(n_blocks * n_heads * batch,)](
        q, tile_source(k, tile.n, use_tma, walk), tile_source(v, tile.n, use_tma, walk), out=out, lse=lse,
        blocks=table, n_blocks=n_blocks, n_queries=n_queries, n_keys=k.shape[1], offset=k.shape[1] - n_queries,
        n_heads=n_heads,
        stride_qb=q.stride(0), stride_qt=q.stride(1), stride_qh=q.stride(2),
        stride_kb=k.stride(0), stride_kt=k.stride(1), stride_kh=k.stride(2),
        stride_vb=v.stride(0), stride_vt=v.stride(1), stride_vh=v.stride(2),
        stride_ob=out.stride(0), stride_ot=out.stride(1), stride_oh=out.stride(2),
        scale=abs(scale) * LOG2_E, NEGATE=scale < 0, GROUP=n_heads // k.shape[2], D=head_dim,
        BLOCK_D=padded_head_dim(head_dim), BLOCK_M=tile.m, BLOCK_N=tile.n, USE_TMA=use_tma,
        PRECISION=precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages,
        **keys, **shared_arguments(where, walk, q.device),
    )  # fmt: skip
