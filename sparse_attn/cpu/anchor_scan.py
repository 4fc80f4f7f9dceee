"""The running softmax over blocks in plain PyTorch, forward and backward; written for CPUs, right on any device.

With element m's logit l_m, M_n the maximum so far and u_m = (k_m, v_m, 1), the sums over everything before block n are

    S_{n+1} = exp(M_n - M_{n+1}) S_n + exp(l_n - M_{n+1}) u_n;   row n = S_n / (its last number)

Exponentials and products are taken for all blocks at once; what goes from block to block is one multiply-add. The backward
pass walks the same way back: with L_n = M_n + log(total_n), the log of the normaliser, and g_n the gradient of row n,

    G_n = g_n + exp(L_n - L_{n+1}) G_{n+1};   du_m = exp(l_m - L_{m+1}) G_{m+1}

where every exponent is at most 0. Each step does the same to each number, however many blocks a call has: whole sequences,
chunks and single blocks give the same bits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def scan_blocks(
    queries: Float[Tensor, "R Hkv D"],
    keys: Float[Tensor, "B N Hkv D"],
    values: Float[Tensor, "B N Hkv D"],
    top: Float[Tensor, "B R Hkv"],
    total: Float[Tensor, "B R Hkv"],
    key_sums: Float[Tensor, "B R Hkv D"],
    value_sums: Float[Tensor, "B R Hkv D"],
) -> tuple[Tensor, ...]:
    """Rows of summary keys and values, and the state after the last block.

    Args:
        queries: Scaled; float32 or float64, as the state's four tensors.
        keys, values: Pooled blocks.
        top, total, key_sums, value_sums: The state before the first block. No gradient flows to `top`, by which the other
            three are only scaled.

    Returns:
        Summary keys and values ``[B, N, R, Hkv, D]`` in the state's dtype, then the state's four tensors.
    """
    if torch.compiler.is_compiling():
        from .registration import cpu_anchor_scan

        return cpu_anchor_scan(queries, keys, values, top, total, key_sums, value_sums)[:6]
    return _ScanBlocks.apply(queries, keys, values, top, total, key_sums, value_sums)  # type: ignore[no-any-return, no-untyped-call]


class _ScanBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        *results, logits, log_totals = scan_forward(*inputs)
        queries, keys, values, _, total, _, _ = inputs
        rows_k, rows_v, last_top, last_total, _, _ = results
        ctx.save_for_backward(queries, keys, values, logits, log_totals, rows_k, rows_v, total, last_total)
        ctx.mark_non_differentiable(last_top)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows_k, rows_v, _, *state = gradients
        d_queries, d_keys, d_values, *d_state = scan_backward(ctx.saved_tensors, (rows_k, rows_v, *state))
        return d_queries, d_keys, d_values, None, *d_state


def scan_forward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    top: Tensor,
    total: Tensor,
    key_sums: Tensor,
    value_sums: Tensor,
) -> tuple[Tensor, ...]:
    """What `scan_blocks` returns; then the logits, and the log of the normaliser before and after each block."""
    batch, n_blocks, heads, d = keys.shape
    k, v = (x.to(total.dtype)[:, :, None] for x in (keys, values))
    # Not a matrix product: its order of additions would hang on the number of blocks.
    logits = (queries * k).sum(-1)
    tops = torch.cat([top[:, None], logits], 1).cummax(1).values
    weights = torch.exp(logits - tops[:, 1:])[..., None]
    decays = torch.exp(tops[:, :-1] - tops[:, 1:])[..., None]
    sums = total.new_empty(batch, n_blocks + 1, queries.shape[0], heads, 2 * d + 1)
    sums[:, 0, ..., :d], sums[:, 0, ..., d:-1], sums[:, 0, ..., -1] = key_sums, value_sums, total
    torch.mul(weights, k, out=sums[:, 1:, ..., :d])
    torch.mul(weights, v, out=sums[:, 1:, ..., d:-1])
    sums[:, 1:, ..., -1:] = weights
    for n in range(n_blocks):
        sums[:, n + 1].addcmul_(sums[:, n], decays[:, n])
    totals = sums[..., -1:]
    shares = 1 / totals[:, :-1]
    rows_k, rows_v = sums[:, :-1, ..., :d] * shares, sums[:, :-1, ..., d:-1] * shares
    log_totals = tops + totals[..., 0].log()
    state = (tops[:, -1], totals[:, -1, ..., 0], sums[:, -1, ..., :d], sums[:, -1, ..., d:-1])
    return rows_k, rows_v, *(x.clone() for x in state), logits, log_totals


def scan_backward(saved: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of queries, keys, values, and of the state's total, key sums and value sums.

    Args:
        saved: Queries, keys, values, logits, log of the normalisers, both rows, the total before and after.
        gradients: Of both rows, and of the last total, key sums and value sums.
    """
    queries, keys, values, logits, log_totals, rows_k, rows_v, total, last_total = saved
    d_rows_k, d_rows_v, d_total, d_key_sums, d_value_sums = gradients
    batch, n_blocks, heads, d = keys.shape
    g = total.new_empty(batch, n_blocks + 1, queries.shape[0], heads, 2 * d + 1)
    g[:, :-1, ..., :d], g[:, :-1, ..., d:-1] = d_rows_k, d_rows_v
    # A softmax's gradient at a logit is its weight times (u_m - row) @ g: the last number carries row @ g.
    g[:, :-1, ..., -1] = (d_rows_k * rows_k).sum(-1) + (d_rows_v * rows_v).sum(-1)
    # The state after the last block is a row too, but for its division by the total.
    g[:, -1, ..., :d] = d_key_sums * last_total[..., None]
    g[:, -1, ..., d:-1] = d_value_sums * last_total[..., None]
    g[:, -1, ..., -1] = -d_total * last_total
    decays = torch.exp(log_totals[:, :-1] - log_totals[:, 1:])[..., None]
    for n in reversed(range(n_blocks)):
        g[:, n].addcmul_(g[:, n + 1], decays[:, n])
    k, v = (x.to(total.dtype) for x in (keys, values))
    after = g[:, 1:]
    weights = torch.exp(logits - log_totals[:, 1:])
    products = (after[..., :d] * k[:, :, None]).sum(-1) + (after[..., d:-1] * v[:, :, None]).sum(-1)
    d_logits = weights * (products - after[..., -1])
    d_queries = torch.einsum("bnrh,bnhd->rhd", d_logits, k)
    d_keys = torch.einsum("bnrh,bnrhd->bnhd", weights, after[..., :d])
    d_keys += torch.einsum("bnrh,rhd->bnhd", d_logits, queries)
    d_values = torch.einsum("bnrh,bnrhd->bnhd", weights, after[..., d:-1])
    first = g[:, 0] / total[..., None]
    state = (-first[..., -1], first[..., :d], first[..., d:-1])
    return d_queries, d_keys.to(keys.dtype), d_values.to(values.dtype), *state
