"""The backward pass: recomputes each step's weights from the forward pass's row maxima and sums.

With base-2 logits s, row maximum m and sum z, unnormalised weights p = 2^(s - m), and the gradients of output and LSE:

    delta = sum_d(dout * out) - dlse;   ds = p * (dout / z v^T - delta / z)
    dv += p^T dout / z;   dk += scale * ds^T q;   dq += scale * ds k

The division by z is by rows of D elements once, not by rows of keys at each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .forward import LOG2_E, Inputs, Sums, scaled_queries
from .lanes import Lane, run_lanes
from .products import Sources, add_to_keys, add_weighted_keys, logits_of, rows_by_keys
from .scratch import Scratch
from .steps import Work
from .tiles import Assignment


@dataclass(frozen=True, eq=False)
class Rows:
    """One row block's share of what the backward pass reads."""

    queries: Float[Tensor, "L R G D"]  # times log2(e) * scale
    top: Float[Tensor, "L RG 1"]  # m
    d_out: Float[Tensor, "L RG D"]  # dout / z
    delta: Float[Tensor, "L RG 1"]  # delta / z


def backward(
    inputs: Inputs,
    out: Float[Tensor, "B T Hq D"],
    sums: Sums,
    d_out: Float[Tensor, "B T Hq D"] | None,
    d_lse: Float[Tensor, "B T Hq"] | None,
    wanted: Sequence[bool],
    assignments: Sequence[Assignment],
) -> list[Tensor | None]:
    """Gradients of q, k, v, extra_k and extra_v in the inputs' dtype, None where `wanted` is False."""
    tensors = (inputs.q, inputs.k, inputs.v, inputs.extra_k, inputs.extra_v)
    grads = [
        _zeros(tensor.shape, inputs.dtype) if tensor is not None and want else None
        for tensor, want in zip(tensors, wanted, strict=True)
    ]
    d_q, d_k, d_v, d_extra_k, d_extra_v = grads
    inputs = inputs.compact()

    def task(lane: Lane, chunk: Sequence[Work], scratch: Scratch) -> None:
        def views(*tensors: Tensor | None) -> list[Tensor | None]:
            return [None if tensor is None else lane.of(tensor) for tensor in tensors]

        by_row = [
            None if tensor is None else lane.of(inputs.grouped(tensor))
            for tensor in (d_q, inputs.q, out, sums.top, sums.total, d_out, d_lse)
        ]
        keys, values = inputs.keys(lane), inputs.values(lane)
        d_keys, d_values = views(d_k, d_extra_k), views(d_v, d_extra_v)
        for work in chunk:
            d_q_rows, *parts = (None if tensor is None else work.rows_of(tensor) for tensor in by_row)
            rows = _rows(parts, inputs.scale, scratch)
            d_queries = _block(rows, keys, values, d_keys, d_values, d_q is not None, work, scratch)
            if d_q_rows is not None:
                d_q_rows.add_(d_queries.view(d_q_rows.shape), alpha=inputs.scale)

    run_lanes(task, assignments, inputs.q, inputs.kv_heads, inputs.dtype)
    return [None if grad is None else grad.to(inputs.q.dtype) for grad in grads]


def _zeros(shape: torch.Size, dtype: torch.dtype) -> Float[Tensor, "B N H D"]:
    """Zeros in which each head's rows lie next to each other."""
    batch, rows, heads, head_dim = shape
    return torch.zeros(batch, heads, rows, head_dim, dtype=dtype, device="cpu").transpose(1, 2)


def _rows(by_row: list[Tensor | None], scale: float, scratch: Scratch) -> Rows:
    """From a block's rows of q, out, top, total, dout (or None) and dlse (or None)."""
    q, out, top, total, d_out, d_lse = by_row
    assert q is not None
    assert out is not None
    assert top is not None
    assert total is not None
    d_rows = scratch.take("d_out", *q.shape)
    delta, row_top, divisor = (scratch.take(name, *q.shape[:3], 1) for name in ("delta", "top", "divisor"))
    if d_out is None:
        d_rows.zero_()
        delta.zero_()
    else:
        d_rows.copy_(d_out)
        torch.sum(torch.mul(d_rows, out, out=scratch.take("product", *q.shape)), -1, keepdim=True, out=delta)
    if d_lse is not None:
        delta.sub_(d_lse[..., None])
    divisor.copy_(total[..., None]).clamp_(min=1)  # a row without keys has 0, and nothing to divide
    return Rows(
        scaled_queries(q, scale, scratch),
        row_top.copy_(top[..., None]).flatten(1, 2),
        d_rows.div_(divisor).flatten(1, 2),
        delta.div_(divisor).flatten(1, 2),
    )


def _block(
    rows: Rows,
    keys: Sources,
    values: Sources,
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
        weights = logits_of(rows.queries, keys, step, scratch).sub_(rows.top).exp2_()
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
