"""From a pattern's layout to the row blocks that the CPU engine walks through.

Each run of queries reads its interval as slices (a mask only on the edges), the columns that it needs gathered, and its
extra keys. Listed key blocks and dilated passes follow as row blocks of their own, over the rows that share them, and
merge by their LSE. A key that an earlier part names is masked in the later ones. Queries that see everything (global
rows) are cut out of the regular runs, so that their long interval is read for them alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from ..patterns import Layout, Pattern
from ..patterns.documents import Document
from ..patterns.parts import BlockList, Columns, DilatedPass, span_bounds
from .tiles import EXTRA, Assignment, Piece, RowBlock

ROWS = 256  # query rows of a block: masked edges waste half of it, and a matrix product wants many
KEYS = 4096  # keys of a dilated piece: bounds its mask

Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]


class PatternSchedule:
    """The row blocks of one pattern over one geometry; they are made anew at each walk, masks included."""

    def __init__(
        self,
        pattern: Pattern,
        n_queries: int,
        n_keys: int,
        *,
        causal: bool,
        cu_seqlens_q: tuple[int, ...] | None = None,
        cu_seqlens_k: tuple[int, ...] | None = None,
    ) -> None:
        self.layout = pattern.layout(
            n_queries, n_keys, ROWS, ROWS, causal=causal, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k
        )

    def __iter__(self) -> Iterator[RowBlock]:
        anchors = self.layout.anchors
        first_block, extra_row = 0, 0
        for index, document in enumerate(self.layout.documents):
            walk = _DocumentWalk(self.layout, index, first_block, extra_row)
            yield from walk.row_blocks()
            first_block += -(-document.n_queries // ROWS)
            extra_row += 0 if anchors is None else -(-document.n_keys // anchors.block)


Bounds = tuple[int, ...] | None


def assignments(
    patterns: Sequence[Pattern], n_queries: int, n_keys: int, causal: bool, cu_seqlens_q: Bounds, cu_seqlens_k: Bounds
) -> tuple[Assignment, ...]:
    """The schedules of one pattern for all KV heads, or of one for each."""
    schedules = [_schedule(pattern, n_queries, n_keys, causal, cu_seqlens_q, cu_seqlens_k) for pattern in patterns]
    if len(schedules) == 1:
        return (Assignment(schedules[0]),)
    return tuple(Assignment(schedule, heads=slice(head, head + 1)) for head, schedule in enumerate(schedules))


@lru_cache(maxsize=32)  # the layers of a model ask for the same few layouts, at every token that it decodes
def _schedule(
    pattern: Pattern, n_queries: int, n_keys: int, causal: bool, cu_seqlens_q: Bounds, cu_seqlens_k: Bounds
) -> PatternSchedule:
    return PatternSchedule(
        pattern, n_queries, n_keys, causal=causal, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k
    )


@dataclass(frozen=True)
class _DocumentWalk:
    """One document's row blocks."""

    layout: Layout
    index: int
    first_block: int
    extra_row: int

    def row_blocks(self) -> Iterator[RowBlock]:
        for start, stop in self._runs():
            pieces = (*self._interval(start, stop), *self._columns(start, stop), *self._extra(start, stop))
            if pieces:
                yield RowBlock(self._rows(start, stop), pieces)
        for nth, blocks in enumerate(self.layout.lists):
            yield from self._listed(blocks, self.layout.lists[:nth])
        for nth, step in enumerate(self.layout.dilated):
            yield from self._dilated(step, self.layout.dilated[:nth])

    @property
    def document(self) -> Document:
        return self.layout.documents[self.index]

    @cached_property
    def bounds(self) -> tuple[Positions, Positions]:
        """Each query's interval [low, high), widened for the rows that see everything; empty without any."""
        document = self.document
        i = np.arange(document.first_position, document.n_keys)
        if self.layout.interval is None:
            low, high = i.copy(), i.copy()
        else:
            low, high = self.layout.interval.bounds(i, document.n_keys)
        for rows in self.layout.full_rows:
            own = rows.positions[rows.offsets[self.index] : rows.offsets[self.index + 1]]
            row_low, row_high = span_bounds(own, rows.left, rows.right, document.n_keys)
            at = own - document.first_position
            low[at], high[at] = np.minimum(low[at], row_low), np.maximum(high[at], row_high)
        return low, high

    def _rows(self, start: int, stop: int, step: int = 1) -> slice:
        """Positions start .. stop as rows of q."""
        shift = self.document.q_start - self.document.first_position
        return slice(start + shift, stop + shift, step)

    def _keys(self, start: int, stop: int, step: int = 1) -> slice:
        return slice(start + self.document.k_start, stop + self.document.k_start, step)

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Runs of query positions: at most ROWS long, and rows that see everything apart from those that do not."""
        document = self.document
        cuts = set(range(document.first_position, document.n_keys, ROWS)) | {document.n_keys}
        for rows in self.layout.full_rows:
            own = rows.positions[rows.offsets[self.index] : rows.offsets[self.index + 1]]
            breaks = np.concatenate([own[np.diff(own, prepend=-2) > 1], own[np.diff(own, append=1 << 62) > 1] + 1])
            cuts.update(breaks.tolist())
        edges = sorted(cuts)
        yield from pairwise(edges)

    def _span(self, start: int, stop: int) -> tuple[Positions, Positions]:
        first = self.document.first_position
        return self.bounds[0][start - first : stop - first], self.bounds[1][start - first : stop - first]

    def _interval(self, start: int, stop: int) -> Iterator[Piece]:
        low, high = self._span(start, stop)
        if (low >= high).all():
            return
        outer_low, inner_low, inner_high, outer_high = low.min(), low.max(), high.min(), high.max()
        if inner_low >= inner_high:
            keys = np.arange(outer_low, outer_high)
            keep = (low[:, None] <= keys) & (keys < high[:, None])
            yield Piece(self._keys(int(outer_low), int(outer_high)), _as_mask(keep))
            return
        if outer_low < inner_low:
            keep = low[:, None] <= np.arange(outer_low, inner_low)
            yield Piece(self._keys(int(outer_low), int(inner_low)), _as_mask(keep))
        yield Piece(self._keys(int(inner_low), int(inner_high)))
        if inner_high < outer_high:
            keep = np.arange(inner_high, outer_high) < high[:, None]
            yield Piece(self._keys(int(inner_high), int(outer_high)), _as_mask(keep))

    def _columns(self, start: int, stop: int) -> Iterator[Piece]:
        if not self.layout.columns:
            return
        block = self.first_block + (start - self.document.first_position) // ROWS
        ranges = [(c.positions, *edge[block].tolist()) for c in self.layout.columns for edge in (c.before, c.after)]
        keys = np.concatenate([positions[first:stop] for positions, first, stop in ranges]).astype(np.int64)
        if len(self.layout.columns) > 1:
            keys = np.unique(keys)
        low, high = self._span(start, stop)
        keys = keys[(keys < low.max()) | (keys >= high.min())]
        i = np.arange(start, stop)
        keep = self._in_columns(i, keys) & ~self._in_interval(start, stop, 1, keys)
        yield from self._gathered(keys, keep)

    def _gathered(self, keys: Positions, keep: Mask) -> Iterator[Piece]:
        used = keep.any(axis=0)
        if used.any():
            if not used.all():
                keys, keep = keys[used], keep[:, used]
            yield Piece(torch.from_numpy(keys + self.document.k_start), None if keep.all() else _as_mask(keep))

    def _extra(self, start: int, stop: int) -> Iterator[Piece]:
        anchors = self.layout.anchors
        if anchors is None:
            return
        own = np.arange(start, stop) // anchors.block
        first, last = int(own[0]), int(own[-1])
        keep = None
        if first < last:
            keep = _as_mask(own[:, None] == np.repeat(np.arange(first, last + 1), anchors.extra_keys))
        rows = slice((self.extra_row + first) * anchors.extra_keys, (self.extra_row + last + 1) * anchors.extra_keys)
        yield Piece(rows, keep, EXTRA)

    def _listed(self, blocks: BlockList, earlier: tuple[BlockList, ...]) -> Iterator[RowBlock]:
        document = self.document
        first_row, last_row = blocks.row_offsets[self.index], blocks.row_offsets[self.index + 1]
        for row in range(int(first_row), int(last_row)):
            # Rows of a list are blocks of the pattern's own size: read together they would gather each other's keys.
            chosen = blocks.indices[blocks.indptr[row] : blocks.indptr[row + 1]].astype(np.int64)
            if not len(chosen):
                continue
            block = row - int(first_row) + int(blocks.first_block[self.index])
            start = max(block * blocks.block, document.first_position)
            stop = min((block + 1) * blocks.block, document.n_keys)
            keys = (chosen[:, None] * blocks.block + np.arange(blocks.block)).ravel()
            keys = keys[keys < document.n_keys]
            i = np.arange(start, stop)
            keep = _near(i, keys, blocks.left, blocks.right)
            keep &= ~(self._in_interval(start, stop, 1, keys) | self._in_columns(i, keys))
            for other in earlier:
                keep &= ~self._in_list(other, i, keys)
            pieces = tuple(self._gathered(keys, keep))
            if pieces:
                yield RowBlock(self._rows(start, stop), pieces)

    def _dilated(self, step: DilatedPass, earlier: tuple[DilatedPass, ...]) -> Iterator[RowBlock]:
        document, d = self.document, step.dilation
        residues = range(min(d, document.n_keys)) if step.residue is None else (step.residue,)
        for residue in residues:
            count = len(range(residue, document.n_keys, d))
            first = len(range(residue, document.first_position, d))
            for begin in range(first, count, ROWS):
                hops = np.arange(begin, min(begin + ROWS, count))
                low, high = span_bounds(hops, step.left, step.right, count)
                start, stop = int(hops[0]) * d + residue, int(hops[-1]) * d + residue + 1
                pieces = []
                for key_begin in range(int(low[0]), int(high[-1]), KEYS):
                    key_hops = np.arange(key_begin, min(key_begin + KEYS, int(high[-1])))
                    i, keys = hops * d + residue, key_hops * d + residue
                    keep = (low[:, None] <= key_hops) & (key_hops < high[:, None])
                    keep &= ~self._in_earlier_parts(i, keys, start, stop, d, earlier)
                    if keep.any():
                        span = self._keys(int(keys[0]), int(keys[-1]) + 1, d)
                        pieces.append(Piece(span, None if keep.all() else _as_mask(keep)))
                if pieces:
                    yield RowBlock(self._rows(start, stop, d), tuple(pieces))

    def _in_earlier_parts(
        self, i: Positions, keys: Positions, start: int, stop: int, step: int, passes: tuple[DilatedPass, ...]
    ) -> Mask:
        """What interval, columns, lists and earlier dilated passes name, for queries start, start + step .. stop."""
        named = self._in_interval(start, stop, step, keys) | self._in_columns(i, keys)
        for blocks in self.layout.lists:
            named |= self._in_list(blocks, i, keys)
        for other in passes:
            ahead = i[:, None] - keys
            hops = ahead // other.dilation
            own = ahead % other.dilation == 0
            own &= (hops < other.left) if other.left is not None else True
            own &= (hops >= -other.right) if other.right is not None else True
            if other.residue is not None:
                own &= (i % other.dilation == other.residue)[:, None]
            named |= own
        return named

    def _in_interval(self, start: int, stop: int, step: int, keys: Positions) -> Mask:
        low, high = self._span(start, stop)
        return (low[::step, None] <= keys) & (keys < high[::step, None])

    def _in_columns(self, i: Positions, keys: Positions) -> Mask:
        named = np.zeros((len(i), len(keys)), dtype=bool)
        for columns in self.layout.columns:
            own = _own_columns(columns, self.index)
            if len(own):
                at = np.minimum(np.searchsorted(own, keys), len(own) - 1)
                named |= (own[at] == keys) & _near(i, keys, columns.left, columns.right)
        return named

    def _in_list(self, blocks: BlockList, i: Positions, keys: Positions) -> Mask:
        first = int(blocks.row_offsets[self.index]) - int(blocks.first_block[self.index])
        rows, which = np.unique(i // blocks.block + first, return_inverse=True)
        spans = zip(blocks.indptr[rows].tolist(), blocks.indptr[rows + 1].tolist(), strict=True)
        named = np.stack([np.isin(keys // blocks.block, blocks.indices[first:stop]) for first, stop in spans])
        return named[which] & _near(i, keys, blocks.left, blocks.right)


def _own_columns(columns: Columns, document: int) -> NDArray[np.int32]:
    return columns.positions[columns.offsets[document] : columns.offsets[document + 1]]


def _near(i: Positions, keys: Positions, left: int | None, right: int | None) -> Mask:
    """Keys within a part's cut around each query."""
    near = np.ones((len(i), len(keys)), dtype=bool)
    if left is not None:
        near &= i[:, None] - left < keys
    if right is not None:
        near &= keys <= i[:, None] + right
    return near


def _as_mask(keep: Mask) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(keep))
