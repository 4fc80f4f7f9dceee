"""From a pattern to what a kernel must know: interval, columns, lists of blocks, dilated passes, full rows, extra keys.

Built from the terms' parameters in O(kept blocks). A key that two parts name counts once: in the order interval (with
the full rows' wider ones), columns, lists, dilated passes, each part masks what an earlier one names. Parts of one
kind that `within` cut differently stand as separate entries, in the order in which they mask each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .chosen import ChosenBlocks
from .documents import Document, check_examples, split_documents
from .hashed import Hashed
from .parts import BlockList, Chunk, Columns, DilatedPass, FullRows, Interval, Positions, span_bounds
from .pattern import Lengths, Pattern, Within
from .random_blocks import draw_blocks
from .terms import Chunked, Dilated, Full, Global, Random, Sinks, Strided, Summaries, Term, Window

Cut = tuple[int | None, int | None]  # keys at or before the query and after it that `within` leaves; None: all


@dataclass(frozen=True, eq=False)
class Layout:
    """What attention through a pattern reads, for one sequence or for packed documents.

    Attributes:
        n_queries, n_keys, block_q, block_k, causal: As asked for.
        documents: The documents; a plain sequence is one.
        blocks: ``[query blocks, 3]`` document, first query and end; a block lies in one document.
        interval: The run of keys around each query, or None.
        columns: Keys that all queries share.
        lists: Key blocks listed for each query block.
        dilated: Passes over every n-th token.
        full_rows: Queries that see everything; they take part with an interval widened to what they see.
        anchors: The extra keys' term, or None.
    """

    n_queries: int
    n_keys: int
    block_q: int
    block_k: int
    causal: bool
    documents: tuple[Document, ...]
    blocks: NDArray[np.int32]
    interval: Interval | None
    columns: tuple[Columns, ...]
    lists: tuple[BlockList, ...]
    dilated: tuple[DilatedPass, ...]
    full_rows: tuple[FullRows, ...]
    anchors: Summaries | None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        parts = [part.nbytes for kind in (self.columns, self.lists, self.full_rows) for part in kind]
        return self.blocks.nbytes + sum(parts)

    def interval_tiles(self) -> NDArray[np.int64]:
        """Key tiles of each query block's interval, ``[query blocks, 4]``: computed here, not stored.

        Tiles first .. last of `block_k` keys (counted in the document) hold the block's intervals; in
        inner_first .. inner_last every query sees every key, so that these need no mask. Columns: first, inner_first,
        inner_last, last. Full rows are not part of it.
        """
        tiles = np.zeros((len(self.blocks), 4), dtype=np.int64)
        for rows, document, first, last in self.block_positions():
            if self.interval is None:
                continue
            low_first, high_first = self.interval.bounds(first, document.n_keys)
            low_last, high_last = self.interval.bounds(last, document.n_keys)
            begin, end = low_first // self.block_k, -(-high_last // self.block_k)
            # The document's last tile may be short and then takes a mask for its length.
            inner_begin = np.minimum(-(-low_last // self.block_k), end)
            inner_end = np.maximum(high_first // self.block_k, inner_begin)
            tiles[rows] = np.stack([begin, inner_begin, inner_end, end], axis=1)
        return tiles

    def block_positions(self) -> Iterator[tuple[slice, Document, Positions, Positions]]:
        """For each document: its rows of `blocks`, and the first and last query position of each block."""
        starts = np.searchsorted(self.blocks[:, 0], np.arange(len(self.documents) + 1))
        for index, document in enumerate(self.documents):
            rows = slice(int(starts[index]), int(starts[index + 1]))
            shift = document.first_position - document.q_start
            block = self.blocks[rows].astype(np.int64)
            yield rows, document, block[:, 1] + shift, block[:, 2] - 1 + shift


def build_layout(
    pattern: Pattern,
    n_queries: int | None,
    n_keys: int | None,
    block_q: int,
    block_k: int,
    causal: bool,
    cu_seqlens_q: Lengths | None,
    cu_seqlens_k: Lengths | None,
) -> Layout:
    """The layout of a pattern; see `Pattern.layout`."""
    for name, value in (("block_q", block_q), ("block_k", block_k)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    documents = split_documents(n_queries, n_keys, cu_seqlens_q, cu_seqlens_k)
    check_examples(pattern, documents, packed=cu_seqlens_q is not None)
    groups = Groups(pattern, causal)
    geometry = Layout(
        n_queries=documents[-1].q_stop if documents else 0,
        n_keys=documents[-1].k_stop if documents else 0,
        block_q=block_q,
        block_k=block_k,
        causal=causal,
        documents=documents,
        blocks=_query_blocks(documents, block_q),
        interval=groups.interval,
        columns=(),
        lists=(),
        dilated=tuple(groups.dilated),
        full_rows=(),
        anchors=groups.anchors,
    )
    packed = cu_seqlens_q is not None
    columns = tuple(_columns(geometry, terms, cut, packed) for cut, terms in groups.columns.items())
    lists = tuple(_block_list(geometry, terms, block, cut) for (block, cut), terms in groups.lists.items())
    full_rows = tuple(_full_rows(documents, terms, cut, packed) for cut, terms in groups.full_rows.items())
    return replace(
        geometry,
        columns=tuple(part for part in columns if len(part.positions)),
        lists=tuple(part for part in lists if len(part.indices)),
        full_rows=tuple(part for part in full_rows if len(part.positions)),
    )


class Groups:
    """The terms of a pattern, sorted into parts."""

    def __init__(self, pattern: Pattern, causal: bool) -> None:
        self.causal = causal
        self.interval: Interval | None = None
        self.columns: dict[Cut, list[Term]] = defaultdict(list)
        self.lists: dict[tuple[int, Cut], list[Random]] = defaultdict(list)
        self.full_rows: dict[Cut, list[Global]] = defaultdict(list)
        self.dilated: list[DilatedPass] = []
        self.anchors: Summaries | None = None
        for clause in pattern.terms:
            term, limit = (clause.term, clause.limit) if isinstance(clause, Within) else (clause, None)
            left = None if limit is None else limit.left
            right = 0 if causal else None if limit is None else limit.ahead
            self._sort(term, left, right)

    def _sort(self, term: Term, left: int | None, right: int | None) -> None:
        match term:
            case Window():
                self._widen(_least(left, term.left), _least(right, term.ahead))
            case Full() | Strided(stride=1):
                self._widen(left, right)
            case Chunked():
                self._widen(1, 0, Chunk(term.size, left, right))
            case Dilated(dilation=1):
                window = term.window
                self._widen(_least(left, window), _least(right, None if window is None else window - 1))
            case Dilated():
                steps = None if left is None else (left - 1) // term.dilation + 1
                ahead = None if right is None else right // term.dilation
                window = term.window
                ahead = _least(ahead, None if window is None else window - 1)
                self.dilated.append(DilatedPass(term.dilation, _least(steps, window), ahead))
            case Strided(rows="strided"):
                steps = None if left is None else (left - 1) // term.stride + 1
                ahead = None if right is None else right // term.stride
                self.dilated.append(DilatedPass(term.stride, steps, ahead, term.offset))
            case Sinks() | Strided():
                self.columns[left, right].append(term)
            case Global():
                self.columns[left, right].append(term)
                self.full_rows[left, right].append(term)
            case Random():
                self.lists[term.block, (left, right)].append(term)
            case Summaries():
                if self.anchors is not None:
                    raise ValueError(f"pattern: at most one term of summary keys, got {self.anchors!r} and {term!r}")
                self.anchors = term
            case ChosenBlocks() | Hashed():
                pass  # chosen at run time: attention passes over its keys by themselves
            case _:
                raise NotImplementedError(f"layout: {type(term).__name__} has no layout")

    def _widen(self, left: int | None, right: int | None, chunk: Chunk | None = None) -> None:
        """Take one more interval into the hull; every one holds the query itself, so hull and union are the same."""
        old = self.interval or Interval(1, 0)
        self.interval = Interval(
            None if old.left is None or left is None else max(old.left, left),
            None if old.right is None or right is None else max(old.right, right),
            old.chunks if chunk is None or chunk in old.chunks else (*old.chunks, chunk),
        )


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _query_blocks(documents: Sequence[Document], block_q: int) -> NDArray[np.int32]:
    blocks = []
    for index, document in enumerate(documents):
        starts = np.arange(document.q_start, document.q_stop, block_q)
        stops = np.minimum(starts + block_q, document.q_stop)
        blocks.append(np.stack([np.full_like(starts, index), starts, stops], axis=1))
    return np.concatenate(blocks).astype(np.int32) if blocks else np.zeros((0, 3), np.int32)


def _columns(layout: Layout, terms: list[Term], cut: Cut, packed: bool) -> Columns:
    positions, offsets = [], [0]
    before = np.zeros((len(layout.blocks), 2), dtype=np.int32)
    after = np.zeros_like(before)
    for index, (rows, document, first, last) in enumerate(layout.block_positions()):
        own = _column_positions([term.example(index) if packed else term for term in terms], document.n_keys)
        low, _ = span_bounds(first, *cut, document.n_keys)
        _, high = span_bounds(last, *cut, document.n_keys)
        if layout.interval is None:
            hole_low = hole_high = high
        else:
            # Inside the interval of all the block's queries: from the last query's first key to the first one's end.
            hole_low, _ = layout.interval.bounds(last, document.n_keys)
            _, hole_high = layout.interval.bounds(first, document.n_keys)
            # Under causal attention every interval ends with the query, and no column stands after it.
            hole_high = high if layout.causal else np.maximum(hole_low, hole_high)
        edges = np.stack([low, np.clip(hole_low, low, high), np.clip(hole_high, low, high), high], axis=1)
        found = np.searchsorted(own, edges) + offsets[-1]
        before[rows], after[rows] = found[:, :2], found[:, 2:]
        positions.append(own)
        offsets.append(offsets[-1] + len(own))
    joined = np.concatenate(positions) if positions else np.zeros(0)
    return Columns(joined.astype(np.int32), np.array(offsets, dtype=np.int64), *cut, before, after)


def _column_positions(terms: list[Term], n_keys: int) -> Positions:
    found: list[Positions] = []
    for term in terms:
        match term:
            case Sinks():
                found.append(np.arange(min(term.n, n_keys)))
            case Strided():
                found.append(np.arange(term.offset, n_keys, term.stride))
            case Global():
                found.append(np.array([p for p in term.shared if p < n_keys], dtype=np.int64))
    return np.unique(np.concatenate(found))


def _full_rows(documents: Sequence[Document], terms: list[Global], cut: Cut, packed: bool) -> FullRows:
    positions, offsets = [], [0]
    for index, document in enumerate(documents):
        own = {p for term in terms for p in (term.example(index) if packed else term).shared}
        seen = sorted(p for p in own if document.first_position <= p < document.n_keys)
        positions.extend(seen)
        offsets.append(len(positions))
    return FullRows(np.array(positions, dtype=np.int64), np.array(offsets, dtype=np.int64), *cut)


def _block_list(layout: Layout, terms: list[Random], block: int, cut: Cut) -> BlockList:
    rows, columns = [], []
    first_block, row_offsets, column_offsets = [], [0], [0]
    for document in layout.documents:
        start = document.first_position // block
        stop = -(-document.n_keys // block) if document.n_queries else start
        query_blocks = np.arange(start, stop)
        drawn = np.concatenate([draw_blocks(term, query_blocks, document.n_keys, layout.causal) for term in terms], 1)
        drawn.sort(axis=1)
        keep = drawn >= 0
        keep[:, 1:] &= drawn[:, 1:] != drawn[:, :-1]
        keep &= _some_pair_needed(layout, document, query_blocks[:, None], drawn, block, cut)
        row, nth = np.nonzero(keep)
        rows.append(row + row_offsets[-1])
        columns.append(drawn[row, nth])
        first_block.append(start)
        row_offsets.append(row_offsets[-1] + len(query_blocks))
        column_offsets.append(column_offsets[-1] + -(-document.n_keys // block))
    row = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    indices = np.concatenate(columns) if columns else np.zeros(0, np.int64)
    document_of_row = np.repeat(np.arange(len(first_block)), np.diff(row_offsets))
    column = indices + np.array(column_offsets)[document_of_row[row]]
    by_column = np.argsort(column, kind="stable")
    return BlockList(
        block,
        *cut,
        first_block=np.array(first_block, dtype=np.int64),
        row_offsets=np.array(row_offsets, dtype=np.int64),
        column_offsets=np.array(column_offsets, dtype=np.int64),
        indptr=np.concatenate([[0], np.cumsum(np.bincount(row, minlength=row_offsets[-1]))]).astype(np.int64),
        indices=indices.astype(np.int32),
        transpose_indptr=np.concatenate([[0], np.cumsum(np.bincount(column, minlength=column_offsets[-1]))]).astype(
            np.int64
        ),
        transpose_indices=row[by_column].astype(np.int32),
    )


def _some_pair_needed(
    layout: Layout, document: Document, query_blocks: Positions, key_blocks: Positions, block: int, cut: Cut
) -> NDArray[np.bool_]:
    """Whether a listed block has keys within the cut that are not in the interval of all its queries."""
    n_keys = document.n_keys
    first = np.maximum(query_blocks * block, document.first_position)
    last = np.minimum(query_blocks * block + block, n_keys) - 1
    key_first, key_stop = key_blocks * block, np.minimum(key_blocks * block + block, n_keys)
    low, _ = span_bounds(first, *cut, n_keys)
    _, high = span_bounds(last, *cut, n_keys)
    needed = (key_first < high) & (key_stop > low)
    if layout.interval is not None:
        inner_low, _ = layout.interval.bounds(last, n_keys)
        _, inner_high = layout.interval.bounds(first, n_keys)
        needed &= (key_first < inner_low) | (key_stop > inner_high)
    return needed
