"""The forward pass: a softmax over all keys of a row block, step by step, with the running maximum and sum of each row.

For each step with logits s = log2(e) * scale * q k^T, of a row whose keys so far have maximum m, sum z, output a:

    m' = max(m, max s);  c = 2^(m - m');  p = 2^(s - m');  z' = c z + sum p;  a' = c a + p v

at the end out = a / z and LSE = ln(2) * (m + log2 z). Powers of two because torch's `exp2` keeps its speed where a
result underflows, at which its `exp` becomes 17 times slower. A row that an earlier row block has treated goes on from
its m, z and a = z * out: that is how row blocks merge. The backward pass reads m and z, not their sum, which would round
the logits of a peaked row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .lanes import Lane, run_lanes
from .products import Sources, add_weighted_keys, logits_of
from .scratch import Scratch
from .steps import Work
from .tiles import Assignment

LOG2_E = math.log2(math.e)
COPY = 4  # keys for each query row, above which keys are read where they lie


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

    def compact(self) -> "Inputs":
        """Each head's keys next to each other in the dtype of the sums, if so many rows read them that a copy pays."""
        if self.q.shape[1] * COPY < self.k.shape[1]:
            return self
        k, v = (x.transpose(1, 2).to(self.dtype).contiguous().transpose(1, 2) for x in (self.k, self.v))
        return replace(self, k=k, v=v)

    def grouped(self, tensor: Tensor) -> Tensor:
        """`[B, T, Hq, ...]` -> `[B, T, Hkv, Hq // Hkv, ...]`, a view."""
        return tensor.unflatten(2, (self.kv_heads, -1))

    def keys(self, lane: Lane) -> Sources:
        return [lane.of(tensor) for tensor in (self.k, self.extra_k) if tensor is not None]

    def values(self, lane: Lane) -> Sources:
        return [lane.of(tensor) for tensor in (self.v, self.extra_v) if tensor is not None]


@dataclass(frozen=True, eq=False)
class Sums:
    """Each row's largest logit (base 2) and the sum of 2^(logit - largest) over its keys.

    Without any key that is the lowest finite number, for minus infinity minus itself would be NaN, and 0.
    """

    top: Float[Tensor, "B T Hq"]
    total: Float[Tensor, "B T Hq"]

    def lse(self) -> Float[Tensor, "B T Hq"]:
        return torch.log2(self.total).add_(self.top).mul_(1 / LOG2_E)


def forward(inputs: Inputs, assignments: Sequence[Assignment]) -> tuple[Float[Tensor, "B T Hq D"], Sums]:
    """Output in q's dtype, and what it was divided by, in the accumulation dtype."""
    out = torch.zeros(inputs.q.shape, dtype=inputs.dtype, device="cpu")
    inputs = inputs.compact()
    total = torch.zeros(inputs.q.shape[:3], dtype=inputs.dtype, device="cpu")
    top = torch.full_like(total, torch.finfo(inputs.dtype).min)

    def task(lane: Lane, chunk: Sequence[Work], scratch: Scratch) -> None:
        by_row = [lane.of(inputs.grouped(tensor)) for tensor in (inputs.q, out, top, total)]
        keys, values = inputs.keys(lane), inputs.values(lane)
        for work in chunk:
            _attend([work.rows_of(tensor) for tensor in by_row], keys, values, work, inputs.scale, scratch)

    run_lanes(task, assignments, inputs.q, inputs.kv_heads, inputs.dtype)
    return out.to(inputs.q.dtype), Sums(top, total)


def scaled_queries(q: Float[Tensor, "L R G D"], scale: float, scratch: Scratch) -> Float[Tensor, "L R G D"]:
    """The block's queries in contiguous rows, times what makes their products base-2 logits."""
    return scratch.take("queries", *q.shape).copy_(q).mul_(scale * LOG2_E)


def _attend(by_row: list[Tensor], keys: Sources, values: Sources, work: Work, scale: float, scratch: Scratch) -> None:
    """Add the keys of one row block to its rows of q, out, top and total."""
    q, out, row_top, row_total = by_row
    queries = scaled_queries(q, scale, scratch)
    acc = scratch.take("acc", *q.shape)
    top, total = (scratch.take(name, *q.shape[:3], 1) for name in ("top", "total"))
    empty = work.fresh
    if empty:
        acc.zero_()
    else:
        top.copy_(row_top[..., None])
        total.copy_(row_total[..., None])
        torch.mul(out, total, out=acc)
    _add_steps(queries, acc.flatten(1, 2), top.flatten(1, 2), total.flatten(1, 2), keys, values, work, scratch)
    # The key of the maximum adds 1, so that a sum below 1 is a row without keys: its 0 / 0 is to be 0.
    torch.div(acc, total.clamp(min=1), out=out)
    row_top.copy_(top[..., 0])
    row_total.copy_(total[..., 0])


def _add_steps(
    queries: Float[Tensor, "L R G D"],
    acc: Float[Tensor, "L RG D"],
    top: Float[Tensor, "L RG 1"],
    total: Float[Tensor, "L RG 1"],
    keys: Sources,
    values: Sources,
    work: Work,
    scratch: Scratch,
) -> None:
    """The online softmax, in place; a, m and z of the text above."""
    lowest = torch.finfo(acc.dtype).min
    empty = work.fresh
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
