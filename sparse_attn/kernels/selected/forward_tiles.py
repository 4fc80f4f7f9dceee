"""Forward kernel for tiles of queries that choose together: a tile walks along its blocks, with one running softmax.

For each chosen block, with logits s = log2(e) * scale * q k^T and a row's maximum m, sum z and output a so far:

    m' = max(m, max s);  c = 2^(m - m');  p = 2^(s - m');  z' = c z + sum p;  a' = c a + p v

and at the end out = a / z, LSE = ln(2) * (m + log2 z). Rows of a tile are its queries times the heads that share the
choice, so that a single query of a decode step has them all in one product. One loop serves all blocks, the mask behind
an `if`: most blocks are seen whole. Bound by the tensor cores where many rows choose together, otherwise by reading keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.blocks import load_tile
from ..attention.interval import row_bounds
from ..attention.launch import Inputs
from ..attention.tiles import LOG2_E, Capability, can_use_tma, padded_head_dim, precision, tile_source
from .kept import document_of, head_rows, kept_keys, seen_whole
from .places import PLAIN, Places
from .settle import Settled
from .tiles import query_tile


@triton.jit(do_not_specialize=["n_queries", "n_keys", "n_documents", "offset"])
def forward_tiles_kernel(
    q, k, v, blocks, times, out, lse, tile_table, first_blocks,
    documents, parameters, row_bits, key_bits, block_flags, list_rows, list_begins, list_entries,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    n_queries, n_keys, offset, n_documents, n_choices, heads, group, tile_rows, scale,
    left, right, limit_left, limit_right,
    HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LISTS: tl.constexpr,
    UNCUT: tl.constexpr, PASSES: tl.constexpr, ALWAYS: tl.constexpr, LIMITED: tl.constexpr, CAUSAL: tl.constexpr,
    PACKED: tl.constexpr, SIZE: tl.constexpr, BLOCK_N: tl.constexpr, SLOTS: tl.constexpr, BLOCK_S: tl.constexpr,
    QUERIES: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, NEGATE: tl.constexpr,
    USE_TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Programs side by side share a choice's keys: first the head runs of one choice, then the parts of its tile.
    head_runs = (heads + HEADS - 1) // HEADS
    pieces = (tile_rows + QUERIES - 1) // QUERIES
    program = tl.program_id(0)
    run = program % head_runs
    choice = program // head_runs % n_choices
    piece = program // head_runs // n_choices % pieces
    tile = program // head_runs // n_choices // pieces
    document, number, first_block = 0, offset // tile_rows + tile, 0
    if PACKED:
        document, number = tl.load(tile_table + 2 * tile), tl.load(tile_table + 2 * tile + 1)
        first_block = tl.load(first_blocks + document)
    k_start, own_keys, first_query, shift = document_of(documents, document, offset, n_keys, PACKED)
    x = tl.maximum(number * tile_rows + piece * QUERIES, first_query)
    stop = tl.minimum(tl.minimum(number * tile_rows + (piece + 1) * QUERIES, (number + 1) * tile_rows), own_keys)
    if x < stop:
        m = tl.arange(0, QUERIES * HEADS)
        d = tl.arange(0, BLOCK_D)
        n = tl.arange(0, BLOCK_N)
        i = x + m // HEADS
        own_head = run * HEADS + m % HEADS
        head = choice * heads + own_head
        kv_head = choice * heads // group
        inside = (i < stop) & (own_head < heads)
        rows = i + shift
        at = rows.to(tl.int64)
        q_at = q + (at * stride_qt + head * stride_qh)[:, None] + d[None, :]
        queries = tl.load(q_at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
        if NEGATE:
            queries = -queries
        keys = head_rows(k, kv_head, stride_kh, USE_TMA)
        values = head_rows(v, kv_head, stride_vh, USE_TMA)
        low, high = row_bounds(i, own_keys, left, right, parameters, row_bits, rows, inside, HAS_INTERVAL, CHUNKS, ROWS)
        behind_rows = parameters + 3 * CHUNKS + 2 * ROWS
        top = tl.full([QUERIES * HEADS], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES * HEADS], tl.float32)
        acc = tl.zeros([QUERIES * HEADS, BLOCK_D], tl.float32)

        # Up to the last entry that is a block.
        entries = (tile.to(tl.int64) * n_choices + choice) * SLOTS
        slots = tl.arange(0, BLOCK_S)
        chosen = tl.load(blocks + entries + slots, mask=slots < SLOTS, other=-1)
        for slot in tl.range(tl.max(tl.where(chosen >= 0, slots + 1, 0))):
            block = tl.load(blocks + entries + slot)
            often = tl.log2(tl.load(times + entries + slot).to(tl.float32))  # a block named twice counts twice
            start = tl.maximum(block, 0) * SIZE
            k_tile = load_tile(
                keys, 0, kv_head, 0, start, 0, own_keys, k_start, 1, stride_kt,
                D, BLOCK_N, BLOCK_D, USE_TMA, False, False,
            )  # fmt: skip
            v_tile = load_tile(
                values, 0, kv_head, 0, start, 0, own_keys, k_start, 1, stride_vt,
                D, BLOCK_N, BLOCK_D, USE_TMA, PACKED, False,
            )  # fmt: skip
            logits = tl.dot(queries, tl.trans(k_tile), input_precision=PRECISION) * scale + often
            free = seen_whole(
                start, x, stop - 1, own_keys, block_flags, first_block + tl.maximum(block, 0), left, right, parameters,
                SIZE, BLOCK_N, CAUSAL, HAS_INTERVAL, CHUNKS, COLUMNS, ALWAYS,
            )  # fmt: skip
            if (block < 0) | (free == 0):
                j = (start + n)[None, :]
                key_inside = (n < SIZE)[None, :] & (j < own_keys) & (block >= 0)
                keep = kept_keys(
                    i[:, None], low[:, None], high[:, None], inside[:, None], j, key_inside, k_start + j, document,
                    limit_left, limit_right, key_bits, n_documents, list_rows, list_begins, list_entries, behind_rows,
                    CAUSAL, LIMITED, COLUMNS, LISTS, PASSES, UNCUT,
                )  # fmt: skip
                logits = tl.where(keep, logits, float("-inf"))
            new_top = tl.maximum(top, tl.max(logits, 1))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)  # -inf minus -inf would be NaN
            weights = tl.exp2(logits - base[:, None])
            correction = tl.exp2(top - base)
            total = total * correction + tl.sum(weights, 1)
            acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * correction[:, None], input_precision=PRECISION)
            top = new_top

        # Output and LSE; a query without keys gets 0 and -inf.
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        n_heads = n_choices * heads
        out_at = out + ((at * n_heads + head) * D)[:, None] + d[None, :]
        tl.store(out_at, acc.to(out.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])
        natural = (top + tl.log2(tl.maximum(total, 1.0))) * 0.6931471805599453
        tl.store(lse + at * n_heads + head, natural, mask=inside)


def forward_tiles(
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
    tile = query_tile(capability, head_dim, q.dtype, where.rows, heads)
    arguments = where.arguments(q.device)
    use_tma = can_use_tma(capability, where.where, PLAIN, k, v)
    pieces = triton.cdiv(where.rows, tile.queries)
    forward_tiles_kernel[(where.n_tiles * pieces * n_choices * triton.cdiv(heads, tile.heads),)](
        q, tile_source(k, arguments["BLOCK_N"], use_tma), tile_source(v, arguments["BLOCK_N"], use_tma), *settled,
        out, lse, where.tile_table(q.device), where.first_blocks(q.device),
        stride_qt=q.stride(1), stride_qh=q.stride(2), stride_kt=k.stride(1), stride_kh=k.stride(2),
        stride_vt=v.stride(1), stride_vh=v.stride(2),
        n_queries=n_queries, n_keys=k.shape[1], offset=k.shape[1] - n_queries, n_choices=n_choices, heads=heads,
        group=n_heads // k.shape[2], tile_rows=where.rows, scale=abs(scale) * LOG2_E, NEGATE=scale < 0,
        SLOTS=where.slots, BLOCK_S=max(2, triton.next_power_of_2(where.slots)),
        QUERIES=tile.queries, HEADS=tile.heads, D=head_dim, BLOCK_D=padded_head_dim(head_dim), USE_TMA=use_tma,
        PRECISION=precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages, **arguments,
    )  # fmt: skip
    return out, lse
