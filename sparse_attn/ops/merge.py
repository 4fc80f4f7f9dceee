"""Merging partial attention results through their log-sum-exp."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def merge(
    outs: Sequence[Float[Tensor, "*rows D"]], lses: Sequence[Float[Tensor, "*rows"]]
) -> tuple[Float[Tensor, "*rows D"], Float[Tensor, "*rows"]]:
    """Attention over the union of disjoint key sets, from the results over each.

    lse = log sum_p exp(lses[p]);  out = sum_p exp(lses[p] - lse) * outs[p]

    Args:
        outs: Partial outputs ``[B, T, Hq, D]`` (packed ``[T, Hq, D]``), all of one shape, dtype and device.
        lses: Their natural-log normalisers ``[B, T, Hq]`` as ``attention(..., return_lse=True)`` returns them.

    Returns:
        out in the dtype of `outs`, and its LSE in the dtype of `lses`. A query that has no keys in any part gives
        output 0 and LSE -inf.

    Raises:
        ValueError: no parts, or parts whose numbers, shapes, dtypes or devices disagree.

    Exact up to rounding, and differentiable in every argument. Cost: O(parts x T x Hq x D).
    Source: Dao et al. 2022, arXiv:2205.14135.

    >>> near, near_lse = attention(q, k, v, Window(4), return_lse=True)
    >>> sinks, sinks_lse = attention(q, k, v, Sinks(2), return_lse=True)
    >>> out, lse = merge([near, sinks], [near_lse, sinks_lse])  # the same key may stand in one part only
    """
    _check(outs, lses)
    logs = torch.stack(list(lses))
    top = logs.detach().amax(0)
    # Where no part has keys, -inf - (-inf) would be NaN, also in the gradient: shift by 0 and pass none there.
    top = top.masked_fill(top == float("-inf"), 0.0)
    weights = torch.exp(logs - top)
    total = weights.sum(0)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    out = sum((w / total)[..., None] * part.to(logs.dtype) for w, part in zip(weights, outs, strict=True))
    assert isinstance(out, Tensor)
    return out.to(outs[0].dtype), (torch.log(total) + top).masked_fill(empty, float("-inf"))


def _check(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> None:
    if len(outs) == 0 or len(outs) != len(lses):
        raise ValueError(
            f"merge: outs and lses must name the same parts, at least one, got {len(outs)} and {len(lses)}"
        )
    for index, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        if not isinstance(out, Tensor) or not isinstance(lse, Tensor):
            raise ValueError(
                f"merge: outs[{index}] and lses[{index}] must be tensors, got {type(out).__name__} and {type(lse).__name__}"
            )
        if out.shape != outs[0].shape or out.dtype != outs[0].dtype or out.device != outs[0].device:
            raise ValueError(
                f"merge: outs[{index}] is {tuple(out.shape)}, {out.dtype} on {out.device}, but outs[0] is "
                f"{tuple(outs[0].shape)}, {outs[0].dtype} on {outs[0].device}"
            )
        if lse.shape != out.shape[:-1] or lse.dtype != lses[0].dtype or lse.device != out.device:
            raise ValueError(
                f"merge: lses[{index}] must be {tuple(out.shape[:-1])}, {lses[0].dtype} on {out.device}, got "
                f"{tuple(lse.shape)}, {lse.dtype} on {lse.device}"
            )
