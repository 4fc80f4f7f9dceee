"""Cuts a row block's pieces into steps: key tiles narrow enough that the logits of one fit the cache."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .tiles import Piece, RowBlock, Schedule

# Elements of one step's logits, 2.5 MiB of float32. Smaller tiles stay nearer to the core, but calling an operation costs
# some 5 microseconds and a step calls 30: below a quarter of this, that is what the time goes to.
LOGITS = 5 << 17
KEY_TILE = 1 << 20  # elements of one step's keys: what bounds a step of few rows


@dataclass(frozen=True, eq=False)
class Run:
    """`count` columns of a key tile from `start` on, and the keys that fill them."""

    start: int
    count: int
    keys: slice | Int[Tensor, " N"]
    source: int


@dataclass(frozen=True, eq=False)
class Mask:
    """`count` columns of a key tile from `start` on that some row may not see.

    `ceiling` is infinity where a row sees a key, minus infinity where it does not: the smaller of it and the logit is
    the masked logit, whatever that was but NaN, and takes a third of the time of filling by a boolean mask.
    """

    start: int
    count: int
    ceiling: Float[Tensor, "R 1 N"]


@dataclass(frozen=True, eq=False)
class Step:
    """One key tile: where its columns come from, and which of them are masked."""

    width: int
    runs: tuple[Run, ...]
    masks: tuple[Mask, ...]


@dataclass(frozen=True, eq=False)
class Work:
    """A row block, cut into steps. `fresh`: no earlier row block of the schedule holds one of its rows."""

    rows: slice
    count: int
    fresh: bool
    steps: tuple[Step, ...]

    def rows_of(self, tensor: Tensor) -> Tensor:
        """`[L, T, ...]` -> `[L, R, ...]`, a view."""
        if self.rows.step in (None, 1):
            return tensor.narrow(1, self.rows.start, self.count)  # takes half the time of indexing
        return tensor[:, self.rows]


def works(schedule: Schedule, n_rows: int, rows_per_query: int, head_dim: int, dtype: torch.dtype) -> Iterator[Work]:
    """The row blocks that have rows and keys, in order.

    Args:
        schedule: Row blocks.
        n_rows: T, the number of query rows.
        rows_per_query: Rows of logits for each row of a block: query heads that are computed together.
        head_dim: Elements of a key, over all KV heads that are computed together.
        dtype: What logits are held in.
    """
    seen = bytearray(n_rows)
    for block in schedule:
        count = len(block)
        if count and any(len(piece) for piece in block.pieces):
            widest = max(1, min(LOGITS // (count * rows_per_query), KEY_TILE // head_dim))
            fresh = not any(seen[block.rows])
            seen[block.rows] = b"\x01" * count
            yield Work(block.rows, count, fresh, tuple(steps(block, widest, dtype)))


def steps(block: RowBlock, widest: int, dtype: torch.dtype) -> Iterator[Step]:
    """Steps of even width, none wider than `widest`."""
    left = sum(len(piece) for piece in block.pieces)
    parts = list(reversed(block.pieces))
    for remaining in range(-(-left // widest), 0, -1):
        width = -(-left // remaining)
        yield _step(parts, width, dtype)
        left -= width


def _step(parts: list[Piece], width: int, dtype: torch.dtype) -> Step:
    """Takes pieces off the end of `parts`, and cuts the last one, until they fill `width` columns."""
    runs: list[Run] = []
    masks: list[Mask] = []
    seen, hidden = (torch.tensor(value, dtype=dtype, device="cpu") for value in (math.inf, -math.inf))
    start = 0
    while start < width:
        piece = parts.pop()
        count = len(piece)
        if count > width - start:
            count = width - start
            piece, rest = _cut(piece, count)
            parts.append(rest)
        if count:
            _append(runs, Run(start, count, piece.keys, piece.source))
            if piece.keep is not None:
                masks.append(Mask(start, count, torch.where(piece.keep[:, None], seen, hidden)))
        start += count
    return Step(width, tuple(runs), tuple(masks))


def _append(runs: list[Run], run: Run) -> None:
    """Adds a run; to the last one if their slices touch, so that one operation reads or writes both."""
    keys = _joined(runs[-1], run) if runs else None
    if keys is None:
        runs.append(run)
    else:
        runs[-1] = Run(runs[-1].start, runs[-1].count + run.count, keys, run.source)


def _joined(one: Run, other: Run) -> slice | None:
    """Both runs' keys as one slice, or None."""
    first, then = one.keys, other.keys
    if not isinstance(first, slice) or not isinstance(then, slice) or one.source != other.source:
        return None
    touch = first.stop == then.start and first.step in (None, 1) and then.step in (None, 1)
    return slice(first.start, then.stop) if touch else None


def _cut(piece: Piece, count: int) -> tuple[Piece, Piece]:
    """The first `count` keys, and the others."""
    keys, keep = piece.keys, piece.keep
    head: slice | Tensor
    tail: slice | Tensor
    if isinstance(keys, slice):
        middle = keys.start + count * (keys.step or 1)
        head, tail = slice(keys.start, middle, keys.step), slice(middle, keys.stop, keys.step)
    else:
        head, tail = keys[:count], keys[count:]
    if keep is None:
        return Piece(head, None, piece.source), Piece(tail, None, piece.source)
    return Piece(head, keep[:, :count], piece.source), Piece(tail, keep[:, count:], piece.source)
