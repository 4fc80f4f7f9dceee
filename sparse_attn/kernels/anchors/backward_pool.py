"""Last kernel of anchors: gradients of pooled blocks handed to their tokens, on top of what the tokens have from elsewhere.

    dk[t] = given[t] + w[t] dpk + dl[t] scale pooling;   dv[t] = given[t] + w[t] dpv
    dl[t] = w[t] (k[t] @ dpk + v[t] @ dpv - pooled_k @ dpk - pooled_v @ dpv);   dpooling = sum_t dl[t] scale k[t]

Means have w = 1 / tokens and no dl, and need not read keys and values. Adding what is given here, and not in a pass of its
own, saves a third of the traffic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.blocks import head_pointer, load_rows
from ..attention.tiles import padded_head_dim
from .pool import block_span
from .scan import TO_BASE_2
from .spans import Spans


@triton.jit(do_not_specialize=["n_keys", "n_rows"])
def backward_pool_kernel(
    k, v, pooling, pooled, log_sums, parts, given_k, given_v, dk, dv, d_pooling, tokens,
    stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_gb, stride_gt, stride_gh, stride_wb, stride_wt, stride_wh, stride_db, stride_dt, stride_dh,
    stride_pooled, stride_parts, stride_tile, n_keys, n_rows, n_heads, block, scale,
    TILES: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    LEARNED: tl.constexpr, GIVEN: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = program % n_heads
    row = program // n_heads
    batch, start, stop = block_span(row, tokens, n_keys, n_rows, block, PACKED)
    d = tl.arange(0, BLOCK_D)
    t = tl.arange(0, BLOCK_T)
    live = d < D
    place = (row.to(tl.int64) * n_heads + head) * D + d
    g_k = tl.zeros([BLOCK_D], tl.float32)
    g_v = tl.zeros([BLOCK_D], tl.float32)
    for _ in tl.static_range(TILES):
        g_k += tl.load(parts + place, mask=live, other=0.0)
        g_v += tl.load(parts + stride_parts + place, mask=live, other=0.0)
        parts += stride_tile
    if LEARNED:
        query = tl.load(pooling + head * D + d, mask=live, other=0.0).to(tl.float32) * scale
        mean = tl.load(pooled + place, mask=live, other=0.0).to(tl.float32) * g_k
        mean += tl.load(pooled + stride_pooled + place, mask=live, other=0.0).to(tl.float32) * g_v
        delta = tl.sum(mean, 0)
        log_sum = tl.load(log_sums + row.to(tl.int64) * n_heads + head)
        sum_q = tl.zeros([BLOCK_D], tl.float32)
    else:
        share = 1.0 / (stop - start).to(tl.float32)
    for at in tl.range(start, stop, BLOCK_T):
        inside = at + t < stop
        if LEARNED:
            keys = head_pointer(k, batch, head, stride_kb, stride_kh, False)
            values = head_pointer(v, batch, head, stride_vb, stride_vh, False)
            k_tile = load_rows(keys, at + t, inside, stride_kt, D, BLOCK_D).to(tl.float32)
            v_tile = load_rows(values, at + t, inside, stride_vt, D, BLOCK_D).to(tl.float32)
            weight = tl.where(inside, tl.exp2(tl.sum(k_tile * query[None, :], 1) * TO_BASE_2 - log_sum), 0.0)
            d_logit = weight * (tl.sum(k_tile * g_k[None, :] + v_tile * g_v[None, :], 1) - delta)
            sum_q += tl.sum(d_logit[:, None] * k_tile, 0)
            own_k = weight[:, None] * g_k[None, :] + d_logit[:, None] * query[None, :]
            own_v = weight[:, None] * g_v[None, :]
        else:
            own_k = tl.zeros([BLOCK_T, BLOCK_D], tl.float32) + (share * g_k)[None, :]
            own_v = tl.zeros([BLOCK_T, BLOCK_D], tl.float32) + (share * g_v)[None, :]
        if GIVEN:
            from_k = head_pointer(given_k, batch, head, stride_gb, stride_gh, False)
            from_v = head_pointer(given_v, batch, head, stride_wb, stride_wh, False)
            own_k += load_rows(from_k, at + t, inside, stride_gt, D, BLOCK_D).to(tl.float32)
            own_v += load_rows(from_v, at + t, inside, stride_wt, D, BLOCK_D).to(tl.float32)
        stored = inside[:, None] & live[None, :]
        to_tokens = ((at + t).to(tl.int64) * stride_dt)[:, None] + d[None, :]
        to_k = head_pointer(dk, batch, head, stride_db, stride_dh, False) + to_tokens
        to_v = head_pointer(dv, batch, head, stride_db, stride_dh, False) + to_tokens
        tl.store(to_k, own_k.to(dk.dtype.element_ty), mask=stored)
        tl.store(to_v, own_v.to(dv.dtype.element_ty), mask=stored)
    if LEARNED:
        tl.store(d_pooling + place, sum_q * scale, mask=live)


def backward_pool(
    k: Tensor,
    v: Tensor,
    pooling: Tensor | None,
    pooled: Tensor,
    log_sums: Tensor,
    parts: Tensor,
    given: tuple[Tensor, Tensor] | None,
    spans: Spans,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of keys and values, `given` included, and of the pooling query, a part for each block (float32)."""
    batch, n_keys, heads, d = k.shape
    dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    d_pooling = None if pooling is None else parts.new_empty(batch * spans.n_rows, heads, d)
    given_k, given_v = (None, None) if given is None else given
    if dk.numel():
        backward_pool_kernel[(batch * spans.n_rows * heads,)](
            k, v, pooling, pooled, log_sums, parts, given_k, given_v, dk, dv, d_pooling, spans.tokens,
            *k.stride()[:3], *v.stride()[:3],
            *(dk if given_k is None else given_k).stride()[:3], *(dv if given_v is None else given_v).stride()[:3],
            *dk.stride()[:3], pooled.stride(0), parts.stride(0), parts.stride(1),
            n_keys, spans.n_rows, heads, spans.block, scale,
            TILES=parts.shape[1], D=d, BLOCK_D=padded_head_dim(d), BLOCK_T=tokens_a_tile(spans.block, d),
            LEARNED=pooling is not None, GIVEN=given is not None, PACKED=spans.packed, num_warps=4,
        )  # fmt: skip
    return dk, dv, d_pooling


def tokens_a_tile(block: int, head_dim: int) -> int:
    """Tokens that a program of four warps takes at a time: 4,096 numbers of k and as many of v."""
    return max(1, min(triton.next_power_of_2(block) // 2, 4096 // padded_head_dim(head_dim)))
