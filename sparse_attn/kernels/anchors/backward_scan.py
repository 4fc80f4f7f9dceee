"""Third kernel of anchors: from gradients of the rows to gradients of pooled blocks, queries and the first state.

With L_n the log of row n's total, g_n the gradient of row n (keys and values side by side), c_n = g_n @ row n:

    G_n = g_n + exp(L_n - L_{n+1}) G_{n+1};   C_n likewise from c_n;   p_m = exp(l_m - L_{m+1})
    dl_m = p_m (u_m @ G_{m+1} - C_{m+1});   du_m = sum_r p_m G_{m+1} + dl_m w_r (keys);   dw_r = sum_m dl_m k_m

Exponents are never above 0. A program takes BLOCK_R queries of one head and the whole head dim, and walks back along the
blocks; sums over queries are left as one part a program, which the next kernel adds up in order.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.tiles import padded_head_dim
from .scan import State, walk
from .spans import Spans

GROUP = 4  # blocks whose loads are under way at once


class ScanGradients(NamedTuple):
    """Attributes:
    parts: Of pooled keys and values, a part for each tile of queries, ``[2, tiles, B, N, Hkv, D]`` float32.
    queries: ``[sequences, Hkv, R, D]`` float32, one part a sequence.
    total, sums: Of the state before the first block, as in `State`.
    """

    parts: Tensor
    queries: Tensor
    total: Tensor
    sums: Tensor


@triton.jit
def row_tile(source, n, r, head, d, inside, n_heads, R: tl.constexpr, D: tl.constexpr):
    at = ((n * R + r) * n_heads + head)[:, None] * D + d[None, :]
    return tl.load(source + at, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["n_rows", "stride_pooled", "stride_side", "stride_parts", "stride_tile"])
def backward_scan_kernel(
    pooled, logits, queries, summaries, d_keys, d_values, log_totals, total_before, top_after, total_after,
    d_total_after, d_sums_after, parts, d_queries, d_total_before, d_sums_before, rows,
    stride_pooled, stride_side, stride_state, stride_parts, stride_tile, n_rows, n_heads, scale,
    R: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, PACKED: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles: tl.constexpr = (R + BLOCK_R - 1) // BLOCK_R
    tile = program % tiles
    head = program // tiles % n_heads
    sequence = program // tiles // n_heads
    first, last = walk(sequence, rows, n_rows, PACKED)
    d = tl.arange(0, BLOCK_D)
    r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    here = r < R
    live = d < D
    inside = here[:, None] & live[None, :]
    at_queries = (head * R + r)[:, None] * D + d[None, :]
    weights_q = tl.load(queries + at_queries, mask=inside, other=0.0).to(tl.float32) * scale
    d_weights = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)

    # The state after the last block is a row too, but for the division by its total.
    state = (sequence * R + r) * n_heads + head
    state_at = state[:, None] * D + d[None, :]
    total = tl.load(total_after + state, mask=here, other=1.0)
    later = tl.load(top_after + state, mask=here, other=0.0) + tl.log(total)
    carry_k = tl.load(d_sums_after + state_at, mask=inside, other=0.0) * total[:, None]
    carry_v = tl.load(d_sums_after + stride_state + state_at, mask=inside, other=0.0) * total[:, None]
    carry_c = -tl.load(d_total_after + state, mask=here, other=0.0) * total
    end = last.to(tl.int64)
    parts += tile.to(tl.int64) * stride_tile
    for done in tl.range(0, last - first, GROUP):
        # All loads of a group of blocks first: a load takes as long as several steps.
        found = ()
        for nth in tl.static_range(GROUP):
            n = end - 1 - done - nth
            there = n >= first
            block = n * n_heads + head
            seen = inside & there
            found = found + (  # type: ignore[assignment]  # noqa: RUF005  # Triton's tuples know + only
                (
                    tl.load(logits + block * R + r, mask=here & there, other=float("-inf")),
                    tl.load(log_totals + block * R + r, mask=here & there, other=0.0),
                    tl.load(pooled + block * D + d, mask=live & there, other=0.0),
                    tl.load(pooled + stride_pooled + block * D + d, mask=live & there, other=0.0),
                    row_tile(d_keys, n, r, head, d, seen, n_heads, R, D),
                    row_tile(d_values, n, r, head, d, seen, n_heads, R, D),
                    row_tile(summaries, n, r, head, d, seen, n_heads, R, D),
                    row_tile(summaries + stride_side, n, r, head, d, seen, n_heads, R, D),
                ),
            )
        for nth in tl.static_range(GROUP):
            n = end - 1 - done - nth
            there = n >= first
            logit, earlier, key, value, g_k, g_v, row_k, row_v = found[nth]  # type: ignore[var-annotated]
            key, value = key.to(tl.float32), value.to(tl.float32)
            g_k, g_v = g_k.to(tl.float32), g_v.to(tl.float32)
            weight = tl.exp(logit - later)
            d_logit = weight * (tl.sum(carry_k * key[None, :] + carry_v * value[None, :], 1) - carry_c)
            part = parts + (n * n_heads + head) * D + d
            d_key = tl.sum(weight[:, None] * carry_k + d_logit[:, None] * weights_q, 0)
            tl.store(part, d_key, mask=live & there)
            tl.store(part + stride_parts, tl.sum(weight[:, None] * carry_v, 0), mask=live & there)
            d_weights += d_logit[:, None] * key[None, :]

            # Before the first block nothing is loaded, and the sums stay.
            earlier = tl.where(there, earlier, later)
            decay = tl.exp(earlier - later)
            carry_c = tl.sum(g_k * row_k.to(tl.float32) + g_v * row_v.to(tl.float32), 1) + decay * carry_c
            carry_k = g_k + decay[:, None] * carry_k
            carry_v = g_v + decay[:, None] * carry_v
            later = earlier

    start = tl.load(total_before + state, mask=here, other=1.0)
    tl.store(d_total_before + state, -carry_c / start, mask=here)
    tl.store(d_sums_before + state_at, carry_k / start[:, None], mask=inside)
    tl.store(d_sums_before + stride_state + state_at, carry_v / start[:, None], mask=inside)
    at_parts = sequence.to(tl.int64) * n_heads * R * D + at_queries
    tl.store(d_queries + at_parts, d_weights * scale, mask=inside)


def backward_scan(
    pooled: Tensor,
    logits: Tensor,
    queries: Tensor,
    summaries: Tensor,
    log_totals: Tensor,
    before: State,
    after: State,
    d_rows: tuple[Tensor, Tensor],
    d_after: tuple[Tensor, Tensor],
    spans: Spans,
    scale: float,
) -> ScanGradients:
    """Gradients of everything that the scan read; `d_rows` of keys and values, `d_after` of the state's total and sums."""
    _, batch, n_rows, heads, d = pooled.shape
    r = logits.shape[-1]
    block_r = backward_scan_rows(r)
    tiles = -(-r // block_r)
    parts = torch.empty(2, tiles, batch, n_rows, heads, d, dtype=torch.float32, device=pooled.device)
    made = ScanGradients(
        parts,
        parts.new_empty(spans.sequences, heads, r, d),
        torch.empty_like(before.total),
        torch.empty_like(before.sums),
    )
    if spans.sequences:
        backward_scan_kernel[(spans.sequences * heads * tiles,)](
            pooled, logits, queries, summaries, *d_rows, log_totals, before.total, after.top, after.total,
            *d_after, parts, made.queries, made.total, made.sums, spans.rows,
            pooled.stride(0), summaries.stride(0), before.sums.stride(0), parts.stride(0), parts.stride(1), n_rows, heads,
            scale, R=r, D=d, BLOCK_R=block_r, BLOCK_D=padded_head_dim(d), PACKED=spans.packed, GROUP=GROUP, num_warps=1,
        )  # fmt: skip
    return made


def backward_scan_rows(r: int) -> int:
    """Queries of a program: of 64, 32 programs a head."""
    return min(2, triton.next_power_of_2(r))
