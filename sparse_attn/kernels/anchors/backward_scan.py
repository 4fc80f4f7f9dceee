"""Fifth kernel of anchors: from gradients of the rows to gradients of pooled blocks and queries.

With G and C of `backward_chunks.py`, and u_m block m's pooled key and value side by side:

    p_m = exp(l_m - L_{m+1});   dl_m = p_m (u_m @ G_{m+1} - C_{m+1})
    du_m = sum_r p_m G_{m+1} + dl_m w_r (keys);   dw_r = sum_m dl_m k_m

Exponents are never above 0. A program takes BLOCK_R queries of one head, the whole head dim and one chunk of blocks, and
walks back along them; sums over queries, and over blocks, are left as one part a program, which later kernels add in order.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..attention.tiles import padded_head_dim
from .backward_chunks import Carries, chunk_span
from .scan import TO_BASE_2
from .spans import Spans


@triton.jit(do_not_specialize=["n_rows", "n_chunks"])
def backward_scan_kernel(
    pooled, logits, queries, marks, by_row, carries, carried_deltas, d_keys, d_values, parts, d_queries, chunks,
    stride_pooled, stride_marks, stride_carries, stride_parts, stride_tile, n_rows, n_chunks, scale,
    H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles: tl.constexpr = (R + BLOCK_R - 1) // BLOCK_R
    tile = program % tiles
    head = program // tiles % H
    chunk = program // tiles // H
    sequence, first, last = chunk_span(chunk, chunks, n_rows, n_chunks, CHUNK, PACKED)
    d = tl.arange(0, BLOCK_D)
    r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    here = r < R
    live = d < D
    inside = here[:, None] & live[None, :]
    at_queries = (head * R + r)[:, None] * D + d[None, :]
    weights_q = tl.load(queries + at_queries, mask=inside, other=0.0).to(tl.float32) * scale
    d_weights = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)

    end = last.to(tl.int64)
    mark_at = marks + ((sequence + end) * H + head) * R + r
    later_top = tl.load(mark_at, mask=here, other=0.0)
    share = 1.0 / tl.load(mark_at + stride_marks, mask=here, other=1.0)
    place = (chunk.to(tl.int64) * H + head) * R + r
    at_carry = place[:, None] * D + d[None, :]
    carry_k = tl.load(carries + at_carry, mask=inside, other=0.0)
    carry_v = tl.load(carries + stride_carries + at_carry, mask=inside, other=0.0)
    carry_c = tl.load(carried_deltas + place, mask=here, other=0.0)
    parts += tile.to(tl.int64) * stride_tile
    block_at = (end * H + head) * R + r
    element_at = (end * H + head) * D + d
    row_at = ((end * R + r) * H + head)[:, None] * D + d[None, :]
    for _ in tl.range(0, last - first):
        mark_at -= H * R
        block_at -= H * R
        element_at -= H * D
        row_at -= R * H * D
        logit = tl.load(logits + block_at, mask=here, other=float("-inf"))
        top = tl.load(mark_at, mask=here, other=0.0)
        total = tl.load(mark_at + stride_marks, mask=here, other=1.0)
        own = tl.load(by_row + block_at, mask=here, other=0.0)
        key = tl.load(pooled + element_at, mask=live, other=0.0).to(tl.float32)
        value = tl.load(pooled + stride_pooled + element_at, mask=live, other=0.0).to(tl.float32)
        g_k = tl.load(d_keys + row_at, mask=inside, other=0.0)
        g_v = tl.load(d_values + row_at, mask=inside, other=0.0)

        weight = tl.exp2((logit - later_top) * TO_BASE_2) * share
        d_logit = weight * (tl.sum(carry_k * key[None, :] + carry_v * value[None, :], 1) - carry_c)
        d_key = tl.sum(weight[:, None] * carry_k + d_logit[:, None] * weights_q, 0)
        tl.store(parts + element_at, d_key, mask=live)
        tl.store(parts + stride_parts + element_at, tl.sum(weight[:, None] * carry_v, 0), mask=live)
        d_weights += d_logit[:, None] * key[None, :]

        decay = tl.exp2((top - later_top) * TO_BASE_2) * (total * share)
        carry_c = own + decay * carry_c
        carry_k = g_k.to(tl.float32) + decay[:, None] * carry_k
        carry_v = g_v.to(tl.float32) + decay[:, None] * carry_v
        later_top, share = top, 1.0 / total

    tl.store(d_queries + at_carry, d_weights * scale, mask=inside)


def backward_scan(
    pooled: Tensor,
    logits: Tensor,
    queries: Tensor,
    marks: Tensor,
    carries: Carries,
    d_rows: tuple[Tensor, Tensor],
    spans: Spans,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of pooled keys and values, a part for each tile of queries, ``[2, tiles, B, N, Hkv, D]``, and of queries, a
    part for each chunk, ``[chunks, Hkv, R, D]``; float32."""
    _, batch, n_rows, heads, d = pooled.shape
    r = logits.shape[-1]
    block_r = backward_scan_rows(r, d)
    tiles = -(-r // block_r)
    parts = logits.new_empty(2, tiles, batch, n_rows, heads, d)
    d_queries = logits.new_empty(spans.n_chunks, heads, r, d)
    if spans.n_chunks:
        backward_scan_kernel[(spans.n_chunks * heads * tiles,)](
            pooled, logits, queries, marks, carries.by_row, carries.sums, carries.deltas, *d_rows, parts, d_queries,
            spans.chunks,
            pooled.stride(0), marks.stride(0), carries.sums.stride(0), parts.stride(0), parts.stride(1), n_rows,
            spans.chunks_a_sequence, scale, H=heads, R=r, D=d, BLOCK_R=block_r, BLOCK_D=padded_head_dim(d),
            PACKED=spans.packed, CHUNK=spans.chunk, num_warps=1,
        )  # fmt: skip
    return parts, d_queries


def backward_scan_rows(r: int, head_dim: int) -> int:
    """Queries of a program, 1,024 numbers of each tile at most: of 64 and head dim 128, 8 programs a head and chunk."""
    return min(8, 1024 // padded_head_dim(head_dim), triton.next_power_of_2(r))
