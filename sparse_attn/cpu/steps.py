"""Cuts a row block's pieces into steps: key tiles narrow enough that the logits of one fit the cache."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from .tiles import Piece, RowBlock, Schedule

# Elements of one step's logits: 1 MiB of float32 stays in a core's share of the cache, and is large enough that the
# cost of calling an operation does not show. Matrix products slow down by a third at twice as much.
LOGITS = 1 << 18
KEY_TILE = 1 << 20  # elements of one step's keys: what bounds a step of few rows


@dataclass(frozen=True, eq=False)
class Run:
    """Columns [start, stop) of a key tile, and the keys that fill them."""

    start: int
    stop: int
    keys: slice | Int[Tensor, " N"]
    source: int


@dataclass(frozen=True, eq=False)
class Mask:
    """Columns [start, stop) of a key tile that some row may not see."""

    start: int
    stop: int
    hidden: Bool[Tensor, "R N"]


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


def works(schedule: Schedule, n_rows: int, rows_per_query: int, head_dim: int) -> Iterator[Work]:
    """The row blocks that have rows and keys, in order.

    Args:
        schedule: Row blocks.
        n_rows: T, the number of query rows.
        rows_per_query: Rows of logits for each row of a block: query heads that are computed together.
        head_dim: Elements of a key, over all KV heads that are computed together.
    """
    seen = bytearray(n_rows)
    for block in schedule:
        count = len(block)
        if count and any(len(piece) for piece in block.pieces):
            widest = max(1, min(LOGITS // (count * rows_per_query), KEY_TILE // head_dim))
            fresh = not any(seen[block.rows])
            seen[block.rows] = b"\x01" * count
            yield Work(block.rows, count, fresh, tuple(steps(block, widest)))


def steps(block: RowBlock, widest: int) -> Iterator[Step]:
    """Steps of even width, none wider than `widest`."""
    left = sum(len(piece) for piece in block.pieces)
    parts = list(reversed(block.pieces))
    for remaining in range(-(-left // widest), 0, -1):
        width = -(-left // remaining)
        yield _step(parts, width)
        left -= width


def _step(parts: list[Piece], width: int) -> Step:
    """Takes pieces off the end of `parts`, and cuts the last one, until they fill `width` columns."""
    runs: list[Run] = []
    masks: list[Mask] = []
    start = 0
    while start < width:
        piece = parts.pop()
        stop = min(width, start + len(piece))
        if stop - start < len(piece):
            piece, rest = _cut(piece, stop - start)
            parts.append(rest)
        if stop > start:
            runs.append(Run(start, stop, piece.keys, piece.source))
            if piece.keep is not None:
                masks.append(Mask(start, stop, ~piece.keep))
        start = stop
    return Step(width, tuple(_joined(runs)), tuple(masks))


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


def _joined(runs: list[Run]) -> Iterator[Run]:
    """Runs, those whose slices touch made one, so that each is read and written by one operation."""
    open_run = runs[0]
    for run in runs[1:]:
        ours, theirs = open_run.keys, run.keys
        if (
            isinstance(ours, slice)
            and isinstance(theirs, slice)
            and ours.stop == theirs.start
            and (ours.step or 1) == (theirs.step or 1) == 1
            and open_run.source == run.source
        ):
            open_run = Run(open_run.start, run.stop, slice(ours.start, theirs.stop), run.source)
        else:
            yield open_run
            open_run = run
    yield open_run
