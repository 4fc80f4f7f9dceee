"""Merging partial attention results, one pair of numbers at a time: the judge of `ops.merge`."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def merge_partial(
    outs: Sequence[Float[Tensor, "B T H D"]], lses: Sequence[Float[Tensor, "B T H"]]
) -> tuple[Float[Tensor, "B T H D"], Float[Tensor, "B T H"]]:
    """The result of attention over the union of disjoint key sets: out = sum_p exp(lse_p - lse) out_p."""
    out = torch.zeros_like(outs[0], dtype=torch.float64)
    total = torch.full(lses[0].shape, -math.inf, dtype=torch.float64)
    for b, t, h in torch.cartesian_prod(*(torch.arange(n) for n in total.shape)).reshape(-1, 3).tolist():
        logs = [lse[b, t, h].item() for lse in lses]
        top = max(logs)
        if top == -math.inf:
            continue
        total[b, t, h] = top + math.log(math.fsum(math.exp(log - top) for log in logs))
        for part, log in zip(outs, logs, strict=True):
            out[b, t, h] += math.exp(log - total[b, t, h].item()) * part[b, t, h].double()
    return out, total
