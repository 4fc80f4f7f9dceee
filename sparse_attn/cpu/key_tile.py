"""Reads a step's keys into one dense tile, and adds gradients of such a tile back to where its keys came from."""

import torch
from jaxtyping import Float
from torch import Tensor

from .steps import Step

HIDDEN = float("-inf")


def read_tile(sources: list[Tensor], step: Step, out: Float[Tensor, "L N D"]) -> Float[Tensor, "L N D"]:
    """Copy the step's rows of `sources` (each `[L, S, D]`) into `out`, in its dtype."""
    for run in step.runs:
        source = sources[run.source]
        if isinstance(run.keys, slice):
            keys = source[:, run.keys]
        else:  # along the outermost axis in memory: along another, torch copies the whole of a strided tensor first
            keys = source.transpose(0, 1).index_select(0, run.keys).transpose(0, 1)
        out[:, run.start : run.stop].copy_(keys)
    return out


def add_tile(targets: list[Tensor | None], step: Step, tile: Float[Tensor, "L N D"], factor: float) -> None:
    """Add `factor` times the tile to the step's rows of `targets` (each `[L, S, D]`, or None: not wanted)."""
    for run in step.runs:
        target = targets[run.source]
        if target is None:
            continue
        columns = tile[:, run.start : run.stop]
        if isinstance(run.keys, slice):
            target[:, run.keys].add_(columns, alpha=factor)
        else:
            target.index_add_(1, run.keys, columns, alpha=factor)


def masked_logits(
    queries: Float[Tensor, "L RG D"], keys: Float[Tensor, "L N D"], step: Step, out: Float[Tensor, "L RG N"]
) -> Float[Tensor, "L RG N"]:
    """`queries @ keys.T`, minus infinity where a row may not see a key."""
    torch.bmm(queries, keys.transpose(1, 2), out=out)
    for mask in step.masks:
        rows = mask.hidden.shape[0]
        columns = out.unflatten(1, (rows, -1))[..., mask.start : mask.stop]
        columns.masked_fill_(mask.hidden[:, None], HIDDEN)
    return out
