"""The backward pass: recomputes each step's weights from the LSE, and needs nothing else of the forward pass.

With logits s = scale * q k^T, weights p = exp(s - LSE) and their gradients from the output and from the LSE:

    delta = sum_d(dout * out) - dlse;   ds = p * (dout v^T - delta)
    dv += p^T dout;   dk += scale * ds^T q;   dq += scale * ds k
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .forward import LOG2_E, Inputs, scaled_queries
from .lanes import Lane, run_lanes
from .products import add_to_keys, add_weighted_keys, logits_of, rows_by_keys
from .scratch import Scratch
from .steps import Work
from .tiles import Assignment


@dataclass(frozen=True, eq=False)
class Gradients:
    """One buffer for each input whose gradient is wanted, in the accumulation dtype; None for the others."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    extra_k: Tensor | None
    extra_v: Tensor | None


@dataclass(frozen=True, eq=False)
class Rows:
    """One row block's share of what the backward pass reads."""

    queries: Float[Tensor, "L R G D"]  # times log2(e) * scale
    lse: Float[Tensor, "L RG 1"]  # base 2
    d_out: Float[Tensor, "L RG D"]
    delta: Float[Tensor, "L RG 1"]


def backward(
    inputs: Inputs,
    out: Float[Tensor, "B T Hq D"],
    lse: Float[Tensor, "B T Hq"],
    d_out: Float[Tensor, "B T Hq D"] | None,
    d_lse: Float[Tensor, "B T Hq"] | None,
    wanted: Sequence[bool],
    assignments: Sequence[Assignment],
) -> list[Tensor | None]:
    """Gradients of q, k, v, extra_k and extra_v in the inputs' dtype, None where `wanted` is False."""
    tensors = (inputs.q, inputs.k, inputs.v, inputs.extra_k, inputs.extra_v)
    grads = [
        torch.zeros(tensor.shape, dtype=inputs.dtype, device="cpu") if tensor is not None and want else None
        for tensor, want in zip(tensors, wanted, strict=True)
    ]
    buffers = Gradients(*grads)

    def task(lane: Lane, chunk: Sequence[Work], scratch: Scratch) -> None:
        by_row = [inputs.q, out, lse, d_out, d_lse, buffers.q]
        views = [None if tensor is None else lane.of(inputs.grouped(tensor)) for tensor in by_row]
        keys, values = inputs.keys(lane), inputs.values(lane)
        d_keys, d_values = (
            [None if tensor is None else lane.of(tensor) for tensor in pair]
            for pair in ((buffers.k, buffers.extra_k), (buffers.v, buffers.extra_v))
        )
        for work in chunk:
            *parts, d_q = (None if view is None else work.rows_of(view) for view in views)
            rows = _rows(*parts, inputs.scale, scratch)
            d_queries = _block(rows, keys, values, d_keys, d_values, d_q is not None, work, scratch)
            if d_q is not None:
                d_q.add_(d_queries.view(d_q.shape), alpha=inputs.scale)

    run_lanes(task, assignments, inputs.q, inputs.kv_heads, inputs.dtype)
    return [
        None if grad is None else grad.to(tensor.dtype)
        for grad, tensor in zip(grads, tensors, strict=True)
    ]


def _rows(
    q: Float[Tensor, "L R G D"],
    out: Float[Tensor, "L R G D"],
    lse: Float[Tensor, "L R G"],
    d_out: Float[Tensor, "L R G D"] | None,
    d_lse: Float[Tensor, "L R G"] | None,
    scale: float,
    scratch: Scratch,
) -> Rows:
    d_rows = scratch.take("d_out", *q.shape)
    delta = scratch.take("delta", *q.shape[:3])
    if d_out is None:
        d_rows.zero_()
        delta.zero_()
    else:
        d_rows.copy_(d_out)
        torch.sum(torch.mul(d_rows, out, out=scratch.take("product", *q.shape)), -1, out=delta)
    if d_lse is not None:
        delta.sub_(d_lse)
    base2 = torch.mul(lse, LOG2_E, out=scratch.take("lse", *lse.shape))
    base2.clamp_(min=torch.finfo(base2.dtype).min)  # a row without keys: -inf minus -inf would be NaN
    queries = scaled_queries(q, scale, scratch)
    columns = (q.shape[0], -1, 1)
    return Rows(queries, base2.view(columns), d_rows.flatten(1, 2), delta.view(columns))


def _block(
    rows: Rows,
    keys: list[Tensor],
    values: list[Tensor],
    d_keys: list[Tensor | None],
    d_values: list[Tensor | None],
    want_queries: bool,
    work: Work,
    scratch: Scratch,
) -> Float[Tensor, "L RG D"]:
    """Adds to the gradients of keys and values; returns that of the queries, before the factor `scale`."""
    queries = rows.queries.flatten(1, 2)
    d_queries = scratch.take("d_queries", *queries.shape).zero_()
    want_keys, want_values = (any(target is not None for target in targets) for targets in (d_keys, d_values))
    for step in work.steps:
        weights = logits_of(rows.queries, keys, step, scratch).sub_(rows.lse).exp2_()
        if want_values:
            add_to_keys(d_values, weights, rows.d_out, step, 1.0)
        if not (want_queries or want_keys):
            continue
        d_logits = rows_by_keys(rows.d_out, values, step, "d_logits", scratch).sub_(rows.delta).mul_(weights)
        if want_queries:
            add_weighted_keys(d_queries, d_logits, keys, step, scratch)
        if want_keys:
            # queries carry log2(e) * scale: 1 / log2(e) leaves scale, which is what the gradient asks for
            add_to_keys(d_keys, d_logits, queries, step, 1 / LOG2_E)
    return d_queries
