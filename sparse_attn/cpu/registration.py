"""The CPU path as operators of PyTorch, for compiled regions: a compiler sees one call, and neither threads nor layouts.

Patterns travel as their text and boundaries as integer tensors, as to the GPU kernels' operators. Eager calls do not come
here.
"""

from typing import Any

import torch
from torch import Tensor

from ..patterns.parse import parse_heads
from .anchor_scan import scan_backward, scan_forward
from .backward import backward
from .forward import Inputs, Sums, forward
from .schedule import assignments
from .tiles import Assignment


def _parts(
    q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None, cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None, patterns: str, causal: bool, scale: float,
) -> tuple[Inputs, tuple[Assignment, ...]]:  # fmt: skip
    bounds = [None if x is None else tuple(x.tolist()) for x in (cu_seqlens_q, cu_seqlens_k)]
    return Inputs(q, k, v, extra_k, extra_v, scale), assignments(
        parse_heads(patterns), q.shape[1], k.shape[1], causal, bounds[0], bounds[1]
    )


@torch.library.custom_op("sparse_attn::cpu_attention", mutates_args=())
def cpu_attention(
    q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None, cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None, patterns: str, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`tile_attention` through patterns, a line each: output, LSE, and the two numbers of each row that backward reads."""
    inputs, assignments = _parts(q, k, v, extra_k, extra_v, cu_seqlens_q, cu_seqlens_k, patterns, causal, scale)
    out, sums = forward(inputs, assignments)
    return out, sums.lse(), sums.top, sums.total


@cpu_attention.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = [q.new_empty(q.shape[:3], dtype=wide) for _ in range(3)]
    return q.new_empty(q.shape), rows[0], rows[1], rows[2]


@torch.library.custom_op("sparse_attn::cpu_attention_backward", mutates_args=())
def cpu_attention_backward(
    d_out: Tensor, d_lse: Tensor, out: Tensor, top: Tensor, total: Tensor, q: Tensor, k: Tensor, v: Tensor,
    extra_k: Tensor | None, extra_v: Tensor | None, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
    patterns: str, causal: bool, scale: float, wanted: list[bool],
) -> list[Tensor]:  # fmt: skip
    """The gradients that are wanted, in the order q, k, v, extra_k, extra_v."""
    inputs, assignments = _parts(q, k, v, extra_k, extra_v, cu_seqlens_q, cu_seqlens_k, patterns, causal, scale)
    grads = backward(inputs, out, Sums(top, total), d_out, d_lse, wanted, assignments)
    return [grad.contiguous() for grad in grads if grad is not None]


@cpu_attention_backward.register_fake
def _(
    d_out: Tensor, d_lse: Tensor, out: Tensor, top: Tensor, total: Tensor, q: Tensor, k: Tensor, v: Tensor,
    extra_k: Tensor | None, extra_v: Tensor | None, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
    patterns: str, causal: bool, scale: float, wanted: list[bool],
) -> list[Tensor]:  # fmt: skip
    tensors = (q, k, v, extra_k, extra_v)
    return [x.new_empty(x.shape) for x, want in zip(tensors, wanted, strict=True) if want and x is not None]


def _save_call(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    out, _, top, total = output
    ctx.save_for_backward(out, top, total, *inputs[:7])
    ctx.rest = inputs[7:]


def _call_gradients(ctx: Any, d_out: Tensor, d_lse: Tensor, *_: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    wanted = [bool(need) for need in ctx.needs_input_grad[:5]]
    found = iter(cpu_attention_backward(d_out.contiguous(), d_lse.contiguous(), *saved, *ctx.rest, wanted))
    return *(next(found) if want else None for want in wanted), None, None, None, None, None


cpu_attention.register_autograd(_call_gradients, setup_context=_save_call)


@torch.library.custom_op("sparse_attn::cpu_anchor_scan", mutates_args=())
def cpu_anchor_scan(
    queries: Tensor, keys: Tensor, values: Tensor, top: Tensor, total: Tensor, key_sums: Tensor, value_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`scan_blocks`, and the two tensors besides that its backward pass reads."""
    found = [x.contiguous() for x in scan_forward(queries, keys, values, top, total, key_sums, value_sums)]
    return found[0], found[1], found[2], found[3], found[4], found[5], found[6], found[7]


@cpu_anchor_scan.register_fake
def _(
    queries: Tensor, keys: Tensor, values: Tensor, top: Tensor, total: Tensor, key_sums: Tensor, value_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, n_blocks, heads, d = keys.shape
    r = queries.shape[0]
    rows = [total.new_empty(batch, n_blocks, r, heads, d) for _ in range(2)]
    state = [total.new_empty(batch, r, heads) for _ in range(2)]
    sums = [total.new_empty(batch, r, heads, d) for _ in range(2)]
    logits = total.new_empty(batch, n_blocks, r, heads)
    return rows[0], rows[1], *state, *sums, logits, total.new_empty(batch, n_blocks + 1, r, heads)  # type: ignore[return-value]


@torch.library.custom_op("sparse_attn::cpu_anchor_scan_backward", mutates_args=())
def cpu_anchor_scan_backward(saved: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """Of queries, keys, values, total, key_sums and value_sums."""
    return [x.contiguous() for x in scan_backward(saved, gradients)]


@cpu_anchor_scan_backward.register_fake
def _(saved: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    queries, keys, values, *_, total, _last = saved
    sums = [total.new_empty(*total.shape, keys.shape[-1]) for _ in range(2)]
    return [*(x.new_empty(x.shape) for x in (queries, keys, values, total)), *sums]


def _save_scan(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    queries, keys, values, _, total, _, _ = inputs
    rows_k, rows_v, _, last_total, _, _, logits, log_totals = output
    ctx.save_for_backward(queries, keys, values, logits, log_totals, rows_k, rows_v, total, last_total)


def _scan_gradients(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    rows_k, rows_v, _, total, key_sums, value_sums, *_ = gradients
    given = [x.contiguous() for x in (rows_k, rows_v, total, key_sums, value_sums)]
    d_queries, d_keys, d_values, *state = cpu_anchor_scan_backward(list(ctx.saved_tensors), given)
    return d_queries, d_keys, d_values, None, *state


cpu_anchor_scan.register_autograd(_scan_gradients, setup_context=_save_scan)
