"""The matrix products of one step, each over the step's runs of keys.

Slices of keys are read where they lie, and gradients added where they belong: nothing is copied for them but what must
change its dtype. Keys named by index are gathered first.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .scratch import Scratch
from .steps import Run, Step

Sources = list[Tensor]  # [L, S, D] of the sequence, and [L, E, D] of the extra keys if there are any


def logits_of(
    queries: Float[Tensor, "L R G D"], keys: Sources, step: Step, scratch: Scratch
) -> Float[Tensor, "L RG N"]:
    """`queries @ keys.T`, minus infinity where a row may not see a key."""
    logits = rows_by_keys(queries.flatten(1, 2), keys, step, "logits", scratch)
    if step.masks:
        by_query = logits.view(*queries.shape[:3], step.width)
        for mask in step.masks:
            by_query.narrow(3, mask.start, mask.count).clamp_max_(mask.ceiling)
    return logits


def rows_by_keys(
    rows: Float[Tensor, "L RG D"], keys: Sources, step: Step, name: str, scratch: Scratch
) -> Float[Tensor, "L RG N"]:
    """`rows @ keys.T` into the scratch buffer `name`."""
    out = scratch.take(name, rows.shape[0], rows.shape[1], step.width)
    for run in step.runs:
        torch.bmm(rows, _read(keys, run, scratch).mT, out=_columns(out, run, step))
    return out


def add_weighted_keys(
    target: Float[Tensor, "L RG D"], weights: Float[Tensor, "L RG N"], keys: Sources, step: Step, scratch: Scratch
) -> None:
    """`target += weights @ keys`."""
    for run in step.runs:
        target.baddbmm_(_columns(weights, run, step), _read(keys, run, scratch))


def add_to_keys(
    targets: list[Tensor | None],
    weights: Float[Tensor, "L RG N"],
    rows: Float[Tensor, "L RG D"],
    step: Step,
    factor: float,
) -> None:
    """`target += factor * weights.T @ rows` at the step's keys, where there is a target."""
    for run in step.runs:
        target = targets[run.source]
        if target is None:
            continue
        by_key = _columns(weights, run, step).mT
        if isinstance(run.keys, slice):
            _slice(target, run.keys, run.count).baddbmm_(by_key, rows, alpha=factor)
        else:
            target.index_add_(1, run.keys, torch.bmm(by_key, rows), alpha=factor)


def _columns(tile: Float[Tensor, "L RG N"], run: Run, step: Step) -> Float[Tensor, "L RG M"]:
    return tile if len(step.runs) == 1 else tile.narrow(2, run.start, run.count)


def _slice(source: Float[Tensor, "L S D"], keys: slice, count: int) -> Float[Tensor, "L M D"]:
    # `narrow` takes half the time of indexing
    return source.narrow(1, keys.start, count) if keys.step in (None, 1) else source[:, keys]


def _read(sources: Sources, run: Run, scratch: Scratch) -> Float[Tensor, "L M D"]:
    """The run's keys in the dtype of the sums: a view if they have it."""
    source, keys = sources[run.source], run.keys
    tile = _slice(source, keys, run.count) if isinstance(keys, slice) else source.index_select(1, keys)
    return tile if tile.dtype == scratch.dtype else scratch.take("keys", *tile.shape).copy_(tile)
