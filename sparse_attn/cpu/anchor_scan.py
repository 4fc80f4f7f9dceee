"""The running softmax over blocks in plain PyTorch, forward and backward; written for CPUs, right on any device.

With element m's logit l_m, M_n the maximum so far and u_m = (k_m, v_m, 1), the sums over everything before block n are

    S_{n+1} = exp(M_n - M_{n+1}) S_n + exp(l_n - M_{n+1}) u_n;   row n = S_n / (its last number)

Exponentials and products are taken for all blocks at once; what goes from block to block is one multiply-add. The backward
pass walks the same way back: with L_n = M_n + log(total_n), the log of the normaliser, and g_n the gradient of row n,

    G_n = g_n + exp(L_n - L_{n+1}) G_{n+1};   du_m = exp(l_m - L_{m+1}) G_{m+1}

where every exponent is at most 0. Each step does the same to each number, however many blocks a call has: whole sequences,
chunks and single blocks give the same bits.
"""

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
    return _ScanBlocks.apply(queries, keys, values, top, total, key_sums, value_sums)  # type: ignore[no-any-return, no-untyped-call]


class _ScanBlocks(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        top: Tensor,
        total: Tensor,
        key_sums: Tensor,
        value_sums: Tensor,
    ) -> tuple[Tensor, ...]:
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
        last_total = totals[:, -1, ..., 0].clone()
        ctx.save_for_backward(queries, keys, values, logits, log_totals, rows_k, rows_v, total, last_total)
        last_top = tops[:, -1].clone()
        ctx.mark_non_differentiable(last_top)
        return rows_k, rows_v, last_top, last_total, sums[:, -1, ..., :d].clone(), sums[:, -1, ..., d:-1].clone()

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any,
        d_rows_k: Tensor,
        d_rows_v: Tensor,
        _: Tensor,
        d_total: Tensor,
        d_key_sums: Tensor,
        d_value_sums: Tensor,
    ) -> tuple[Tensor | None, ...]:
        queries, keys, values, logits, log_totals, rows_k, rows_v, total, last_total = ctx.saved_tensors
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
        state = (None, -first[..., -1], first[..., :d], first[..., d:-1])
        return d_queries, d_keys.to(keys.dtype), d_values.to(values.dtype), *state
