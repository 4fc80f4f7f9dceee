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

from .key_tile import masked_logits, read_tile
from .lanes import Lane, run_lanes
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
        q_lane, out_lane, lse_lane = (lane.of(inputs.grouped(tensor)) for tensor in (inputs.q, out, lse))
        keys, values = inputs.keys(lane), inputs.values(lane)
        for work in chunk:
            rows = q_lane[:, work.rows], out_lane[:, work.rows], lse_lane[:, work.rows]
            _attend(*rows, keys, values, work, inputs.scale, scratch)

    run_lanes(task, assignments, inputs.q, inputs.kv_heads, inputs.dtype)
    return out.to(inputs.q.dtype), lse.mul_(1 / LOG2_E)


def scaled_queries(q: Float[Tensor, "L R G D"], scale: float, scratch: Scratch) -> Float[Tensor, "L RG D"]:
    """The block's queries as matrix rows, times what makes their products base-2 logits."""
    tile = scratch.take("queries", *q.shape)
    return torch.mul(tile.copy_(q), scale * LOG2_E, out=tile).flatten(1, 2)


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
    lanes, _, _, head_dim = q.shape
    queries = scaled_queries(q, scale, scratch)
    n_rows = queries.shape[1]
    lowest = torch.finfo(queries.dtype).min  # stands for -inf, which minus itself would be NaN
    top, total, acc = (scratch.take(name, lanes, n_rows, n) for name, n in (("top", 1), ("total", 1), ("acc", head_dim)))
    empty = work.fresh
    if not empty:
        top.copy_(lse.flatten(1)[..., None])
        torch.ne(top, -math.inf, out=total)
        top.clamp_(min=lowest)
        acc.unflatten(1, q.shape[1:3]).copy_(out)

    for step in work.steps:
        tile = read_tile(keys, step, scratch.take("tile", lanes, step.width, head_dim))
        logits = masked_logits(queries, tile, step, scratch.take("logits", lanes, n_rows, step.width))
        new_top = logits.amax(-1, keepdim=True).clamp_(min=lowest)
        if not empty:
            torch.maximum(new_top, top, out=new_top)
            correction = top.sub_(new_top).exp2_()
            total.mul_(correction)
            acc.mul_(correction)
        top.copy_(new_top)
        weights = logits.sub_(new_top).exp2_()
        tile = read_tile(values, step, tile)
        if empty:
            torch.sum(weights, -1, keepdim=True, out=total)
            torch.bmm(weights, tile, out=acc)
        else:
            total.add_(weights.sum(-1, keepdim=True))
            torch.baddbmm(acc, weights, tile, out=acc)
        empty = False

    # The key of the maximum adds 1, so that a sum below 1 is a row without keys: its 0 / 0 is to be 0.
    out.copy_(acc.div_(total.clamp(min=1)).unflatten(1, q.shape[1:3]))
    lse.copy_(top.add_(total.log2_()).view(lse.shape))
