"""First kernel of anchors: blocks of tokens to one key and one value each, and the logits that R queries give them.

    pooled[n] = sum_t w[t] x[t] for x = k and v;  w = 1 / tokens, or softmax_t(scale * k[t] @ pooling)
    logits[n,r] = scale * queries[r] @ pooled_k[n]

A program of one warp takes one block of one head, tile by tile of its tokens, and reads each once: memory bounds it. Sums
of one warp ask for no shared memory and no barrier, and as many programs as fit wait for memory side by side.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.blocks import head_pointer, load_rows
from ..attention.tiles import padded_head_dim
from .scan import TO_BASE_2
from .spans import Spans


@triton.jit
def block_span(row, tokens, n_keys, n_rows, block, PACKED: tl.constexpr):
    """Batch example, first token and end of a block, counted over all examples."""
    if PACKED:
        start, stop = tl.load(tokens + 2 * row), tl.load(tokens + 2 * row + 1)
    else:
        start = row % n_rows * block
        stop = tl.minimum(start + block, n_keys)
    return row // n_rows, start, stop


@triton.jit(do_not_specialize=["n_keys", "n_rows"])
def pool_kernel(
    k, v, pooling, queries, pooled, logits, log_sums, tokens,
    stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, stride_side,
    n_keys, n_rows, n_heads, block, scale,
    R: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    LEARNED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = program % n_heads
    row = program // n_heads
    batch, start, stop = block_span(row, tokens, n_keys, n_rows, block, PACKED)
    keys = head_pointer(k, batch, head, stride_kb, stride_kh, False)
    values = head_pointer(v, batch, head, stride_vb, stride_vh, False)
    d = tl.arange(0, BLOCK_D)
    t = tl.arange(0, BLOCK_T)
    sum_k = tl.zeros([BLOCK_D], tl.float32)
    sum_v = tl.zeros([BLOCK_D], tl.float32)
    top = float("-inf")
    total = 0.0
    if LEARNED:
        query = tl.load(pooling + head * D + d, mask=d < D, other=0.0).to(tl.float32) * (scale * TO_BASE_2)
    for at in tl.range(start, stop, BLOCK_T):
        inside = at + t < stop
        k_tile = load_rows(keys, at + t, inside, stride_kt, D, BLOCK_D).to(tl.float32)
        v_tile = load_rows(values, at + t, inside, stride_vt, D, BLOCK_D).to(tl.float32)
        if LEARNED:
            own = tl.where(inside, tl.sum(k_tile * query[None, :], 1), float("-inf"))
            new_top = tl.maximum(top, tl.max(own, 0))
            weights = tl.exp2(own - new_top)
            correction = tl.exp2(top - new_top)
            total = total * correction + tl.sum(weights, 0)
            sum_k = sum_k * correction + tl.sum(weights[:, None] * k_tile, 0)
            sum_v = sum_v * correction + tl.sum(weights[:, None] * v_tile, 0)
            top = new_top
        else:
            sum_k += tl.sum(k_tile, 0)
            sum_v += tl.sum(v_tile, 0)
    if not LEARNED:
        total = (stop - start).to(tl.float32)

    # What later steps read is the rounded pooled key, also for the logits: they agree with it whoever pooled it.
    place = row.to(tl.int64) * n_heads + head
    pooled_k = (sum_k / total).to(pooled.dtype.element_ty)
    tl.store(pooled + place * D + d, pooled_k, mask=d < D)
    tl.store(pooled + stride_side + place * D + d, (sum_v / total).to(pooled.dtype.element_ty), mask=d < D)
    if LEARNED:
        tl.store(log_sums + place, top + tl.log2(total))
    wide_k = pooled_k.to(tl.float32) * scale
    for first in tl.static_range(0, R, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        here = r < R
        at_queries = queries + (head * R + r)[:, None] * D + d[None, :]
        rows = tl.load(at_queries, mask=here[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        tl.store(logits + place * R + r, tl.sum(rows * wide_k[None, :], 1), mask=here)


def pool(
    k: Tensor, v: Tensor, pooling: Tensor | None, queries: Tensor, spans: Spans, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled keys and values ``[2, B, N, Hkv, D]``, logits ``[B, N, Hkv, R]``, and log-sums of learned
    pooling (base 2)."""
    batch, n_keys, heads, d = k.shape
    r = queries.shape[1]
    pooled = torch.empty(2, batch, spans.n_rows, heads, d, dtype=k.dtype, device=k.device)
    logits = torch.empty(batch, spans.n_rows, heads, r, dtype=torch.float32, device=k.device)
    log_sums = logits.new_empty(batch, spans.n_rows, heads)
    if pooled.numel():
        pool_kernel[(batch * spans.n_rows * heads,)](
            k, v, pooling, queries, pooled, logits, log_sums, spans.tokens,
            *k.stride()[:3], *v.stride()[:3], pooled.stride(0),
            n_keys, spans.n_rows, heads, spans.block, scale,
            R=r, D=d, BLOCK_R=min(16, triton.next_power_of_2(r)), BLOCK_D=padded_head_dim(d),
            BLOCK_T=tokens_a_tile(spans.block, d), LEARNED=pooling is not None, PACKED=spans.packed, num_warps=1,
        )  # fmt: skip
    return pooled, logits, log_sums


def tokens_a_tile(block: int, head_dim: int) -> int:
    """Tokens that a warp takes at a time: 4,096 numbers of k and as many of v."""
    return max(1, min(triton.next_power_of_2(block), 4096 // padded_head_dim(head_dim)))
