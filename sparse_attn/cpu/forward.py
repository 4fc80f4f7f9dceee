"""The forward pass: a softmax over all keys of a row block, step by step, with the running maximum and sum of each row.

For each step with logits s = log2(e) * scale * q k^T, of a row whose keys so far have maximum m, sum z, output a:

    m' = max(m, max s);  c = 2^(m - m');  p = 2^(s - m');  z' = c z + sum p;  a' = c a + p v

at the end out = a / z and LSE = ln(2) * (m + log2 z). Powers of two because torch's `exp2` keeps its speed where a
result underflows, at which its `exp` becomes 17 times slower. A row that an earlier row block has treated goes on from
its result, which is the same state with a = out, m = LSE, z = 1: that is how row blocks merge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .lanes import Lane, run_lanes
from .products import add_weighted_keys, logits_of
from .scratch import Scratch
from .steps import Work
from .tiles import Assignment

LOG2_E = math.log2(math.e)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What both passes read: `[B, T, Hq, D]`, `[B, S, Hkv, D]`, and `[B, E, Hkv, D]` or None."""

    q: Float[Tensor, "B T Hq D"]
    k: Float[Tensor, "B S Hkv D"]
    v: Float[Tensor, "B S Hkv D"]
    extra_k: Float[Tensor, "B E Hkv D"] | None
    extra_v: Float[Tensor, "B E Hkv D"] | None
    scale: float

    @property
    def dtype(self) -> torch.dtype:
        """What sums are held in."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @property
    def kv_heads(self) -> int:
        return self.k.shape[2]

    def grouped(self, tensor: Tensor) -> Tensor:
        """`[B, T, Hq, ...]` -> `[B, T, Hkv, Hq // Hkv, ...]`, a view."""
        return tensor.unflatten(2, (self.kv_heads, -1))

    def keys(self, lane: Lane) -> list[Tensor]:
        return [lane.of(tensor) for tensor in (self.k, self.extra_k) if tensor is not None]

    def values(self, lane: Lane) -> list[Tensor]:
        return [lane.of(tensor) for tensor in (self.v, self.extra_v) if tensor is not None]


def forward(inputs: Inputs, assignments: Sequence[Assignment]) -> tuple[Tensor, Tensor]:
    """Output in q's dtype, and the natural-log LSE in the accumulation dtype."""
    out = torch.zeros(inputs.q.shape, dtype=inputs.dtype, device="cpu")
    lse = torch.full(inputs.q.shape[:3], -math.inf, dtype=inputs.dtype, device="cpu")  # base 2 until the end

    def task(lane: Lane, chunk: Sequence[Work], scratch: Scratch) -> None:
        by_row = [lane.of(inputs.grouped(tensor)) for tensor in (inputs.q, out, lse)]
        keys, values = inputs.keys(lane), inputs.values(lane)
        for work in chunk:
            q_rows, out_rows, lse_rows = (work.rows_of(tensor) for tensor in by_row)
            _attend(q_rows, out_rows, lse_rows, keys, values, work, inputs.scale, scratch)

    run_lanes(task, assignments, inputs.q, inputs.kv_heads, inputs.dtype)
    return out.to(inputs.q.dtype), lse.mul_(1 / LOG2_E)


def scaled_queries(q: Float[Tensor, "L R G D"], scale: float, scratch: Scratch) -> Float[Tensor, "L R G D"]:
    """The block's queries in contiguous rows, times what makes their products base-2 logits."""
    return scratch.take("queries", *q.shape).copy_(q).mul_(scale * LOG2_E)


def _attend(
    q: Float[Tensor, "L R G D"],
    out: Float[Tensor, "L R G D"],
    lse: Float[Tensor, "L R G"],
    keys: list[Tensor],
    values: list[Tensor],
    work: Work,
    scale: float,
    scratch: Scratch,
) -> None:
    """Add the keys of one row block to the rows' output and (base-2) LSE."""
    lanes, rows, group, head_dim = q.shape
    queries = scaled_queries(q, scale, scratch)
    top, total = (scratch.take(name, lanes, rows * group, 1) for name in ("top", "total"))
    acc = scratch.take("acc", lanes, rows * group, head_dim)
    lowest = torch.finfo(acc.dtype).min  # stands for -inf, which minus itself would be NaN
    empty = work.fresh
    if empty:
        acc.zero_()
    else:
        top.view(lse.shape).copy_(lse)
        torch.ne(top, -math.inf, out=total)
        top.clamp_(min=lowest)
        acc.view(q.shape).copy_(out)

    for step in work.steps:
        logits = logits_of(queries, keys, step, scratch)
        if empty:
            torch.amax(logits, -1, keepdim=True, out=top).clamp_(min=lowest)
            weights = logits.sub_(top).exp2_()
            torch.sum(weights, -1, keepdim=True, out=total)
        else:
            new_top = logits.amax(-1, keepdim=True).clamp_(min=lowest)
            torch.maximum(new_top, top, out=new_top)
            weights = logits.sub_(new_top).exp2_()
            correction = top.sub_(new_top).exp2_()
            total.mul_(correction).add_(weights.sum(-1, keepdim=True))
            acc.mul_(correction)
            top.copy_(new_top)
        add_weighted_keys(acc, weights, values, step, scratch)
        empty = False

    # The key of the maximum adds 1, so that a sum below 1 is a row without keys: its 0 / 0 is to be 0.
    torch.div(acc.view(q.shape), total.clamp(min=1).view(*lse.shape, 1), out=out)
    torch.add(top.view(lse.shape), total.log2_().view(lse.shape), out=lse)
