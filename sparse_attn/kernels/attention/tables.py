"""Tables that the kernels read, made from a geometry with numpy: O(kept blocks), and O(T + S) where keys or rows are flagged."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...patterns.documents import Document
from ...patterns.layout import Groups
from ...patterns.parts import BlockList, Columns, FullRows
from ...patterns.terms import Global, Sinks

if TYPE_CHECKING:
    from .geometry import Geometry, Walk

Table = NDArray[np.int32]

_ROWS = 128  # the block of a layout that is asked for parts that hang on no block


def vector(values: Iterable[int]) -> Table:
    return np.array(list(values), dtype=np.int32)


def blocks(all_documents: tuple[Document, ...], walk: Walk, rows: int, axis: str) -> Table:
    """Document, residue, first x and end of each block of a pass."""
    found = []
    for index, document in enumerate(all_documents):
        residues = (
            np.arange(max(min(walk.step, document.n_keys), 1)) if walk.residue is None else np.array([walk.residue])
        )
        begin = document.first_position if axis == "q" else 0
        first = np.maximum(-(-(begin - residues) // walk.step), 0)
        stop = -(-(document.n_keys - residues) // walk.step)
        # Blocks of neighbouring residues stand side by side: they read neighbouring tokens.
        count = int(np.max(-(-(stop - first) // rows), initial=0))
        starts = first + rows * np.arange(count)[:, None]
        stops = np.minimum(starts + rows, stop)
        live = starts < stops
        own = np.stack(np.broadcast_arrays(index, residues, starts, stops), axis=-1)
        found.append(own[live])
    return np.concatenate(found).astype(np.int32) if found else np.zeros((0, 4), np.int32)


def documents(where: Geometry) -> Table:
    """First query and end, first key and end, first row of extra keys, first full row and end of each document."""
    block = where.anchors.block if where.anchors else 1
    extra = [0, *accumulate(-(-document.n_keys // block) if where.anchors else 0 for document in where.documents)]
    full = [0, *accumulate(len(rows) for rows in _full_rows(where))]
    return np.array(
        [(*document, extra[index], full[index], full[index + 1]) for index, document in enumerate(where.documents)],
        dtype=np.int32,
    ).reshape(-1, 7)


def extra_documents(where: Geometry) -> Table:
    """The document of each row of extra keys."""
    assert where.anchors is not None
    counts = [-(-document.n_keys // where.anchors.block) for document in where.documents]
    return np.repeat(np.arange(len(counts)), counts).astype(np.int32)


def few_columns(groups: Groups) -> int:
    """The number of columns, where it does not grow with the sequence; otherwise 0."""
    count = 0
    for term in (term for terms in groups.columns.values() for term in terms):
        if isinstance(term, Sinks):
            count += term.n
        elif isinstance(term, Global):
            count += len(term.positions) if term.examples is None else max(map(len, term.positions), default=0)  # type: ignore[arg-type]
        else:
            return 0
    return count


def _columns(where: Geometry, rows: int = _ROWS) -> list[Columns | None]:
    """Each group's columns; None where it has none at these lengths."""
    found = {(columns.left, columns.right): columns for columns in where.layout(rows).columns}
    return [found.get(cut) for cut in where.groups.columns]


def _own(columns: Columns | None, document: int) -> Table:
    if columns is None:
        return np.zeros(0, np.int32)
    return columns.positions[columns.offsets[document] : columns.offsets[document + 1]]


def key_bits(where: Geometry) -> Table:
    """For each key in which groups it is a column, one bit a group."""
    bits = np.zeros(max(where.documents[-1].k_stop, 1), dtype=np.int32)
    for group, columns in enumerate(_columns(where)):
        for index, document in enumerate(where.documents):
            bits[_own(columns, index) + document.k_start] |= np.int32(1 << group)
    return bits


def column_positions(where: Geometry) -> Table:
    """Positions in their document, group by group."""
    parts = [columns.positions for columns in _columns(where) if columns is not None]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def column_tokens(where: Geometry) -> Table:
    """Where the columns stand in k, group by group."""
    return np.concatenate(
        [
            _own(columns, index) + document.k_start
            for columns in _columns(where)
            for index, document in enumerate(where.documents)
        ]
    ).astype(np.int32)


def even_columns(where: Geometry) -> slice | None:
    """The columns' tokens as a slice, if they stand at equal distances."""
    tokens = column_tokens(where)
    step = int(tokens[1] - tokens[0]) if len(tokens) > 1 else 1
    if not len(tokens) or step < 1 or (np.diff(tokens) != step).any():
        return None
    return slice(int(tokens[0]), int(tokens[-1]) + 1, step)


def column_groups(where: Geometry) -> tuple[slice, ...]:
    """Each group's columns among all of them."""
    counts = [0 if columns is None else len(columns.positions) for columns in _columns(where)]
    return tuple(slice(*edge) for edge in pairwise([0, *accumulate(counts)]))


def most_columns(where: Geometry) -> int:
    """What `Geometry.most_columns` says."""
    return max((int(np.diff(columns.offsets).max()) for columns in _columns(where) if columns is not None), default=0)


def column_ranges(where: Geometry, rows: int) -> Table:
    """What `Geometry.column_ranges` says."""
    layout = where.layout(rows)
    ranges = np.zeros((len(layout.blocks), where.columns, 6), dtype=np.int32)
    for group, (columns, span) in enumerate(zip(_columns(where, rows), column_groups(where), strict=True)):
        if columns is None:
            continue
        before, after = columns.before, columns.after
        inner = np.stack([before[:, 0], after[:, 1]], axis=1)
        if group == 0 and not where.rows:
            inner = _seen_by_all(where, columns, rows)
        edges = [before[:, 0], inner[:, 0], before[:, 1], after[:, 0], inner[:, 1], after[:, 1]]
        ranges[:, group] = np.stack(edges, axis=1) + span.start
    return ranges


def _seen_by_all(where: Geometry, columns: Columns, rows: int) -> Table:
    """The end of the columns before, and the first of those after, that all queries of a block see outside intervals."""
    layout = where.layout(rows)
    inner = np.stack([columns.before[:, 0], columns.after[:, 1]], axis=1)
    for index, (blocks_of, document, first, last) in enumerate(layout.block_positions()):
        own, begin = _own(columns, index), columns.offsets[index]
        ahead = first + 1 + (document.n_keys if columns.right is None else columns.right)
        if layout.interval is None:
            low = high = ahead
        else:
            low, high = (
                layout.interval.bounds(first, document.n_keys)[0],
                layout.interval.bounds(last, document.n_keys)[1],
            )
        before, after = columns.before[blocks_of], columns.after[blocks_of]
        if columns.left is None:
            seen = np.searchsorted(own, np.minimum(low, ahead)) + begin
            inner[blocks_of, 0] = np.clip(seen, before[:, 0], before[:, 1])
        if columns.right is None:
            seen = np.searchsorted(own, high) + begin
            inner[blocks_of, 1] = np.clip(seen, after[:, 0], after[:, 1])
    return inner.astype(np.int32)


def column_blocks(where: Geometry, count: int, most: int, least_rows: int) -> Table:
    """Blocks of `count` columns, each as often as the queries that see it are many; see `Geometry.column_blocks`."""
    found = [np.zeros((0, 5), np.int64)]
    for group, (columns, span) in enumerate(zip(_columns(where), column_groups(where), strict=True)):
        if columns is None:
            continue
        for index, (begin, end) in enumerate(pairwise(columns.offsets.tolist())):
            starts = np.arange(begin, end, count)
            stops = np.minimum(starts + count, end)
            document = where.documents[index]
            ahead = document.n_keys if columns.right is None else columns.right
            behind = document.n_keys if columns.left is None else columns.left
            low = np.maximum(columns.positions[starts] - ahead, document.first_position)
            high = np.minimum(columns.positions[stops - 1] + behind, document.n_keys)
            place = np.broadcast_arrays(
                index, group, starts + span.start, stops + span.start, np.maximum(high - low, 0)
            )
            found.append(np.stack(place, axis=-1))
    blocks = np.concatenate(found)
    rows = max(least_rows, -(-int(blocks[:, 4].sum()) // most))
    splits = np.maximum(-(-blocks[:, 4] // rows), 1)
    which = np.arange(splits.sum()) - np.repeat(np.cumsum(splits) - splits, splits)
    return np.column_stack([np.repeat(blocks[:, :4], splits, axis=0), which, np.repeat(splits, splits)]).astype(
        np.int32
    )


def column_places(blocks: Table) -> Table:
    """Of each column in the table of `column_blocks`: its block's first split, their number, its place in the block."""
    first = np.flatnonzero(blocks[:, 4] == 0)
    count = blocks[first, 3] - blocks[first, 2]
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.column_stack([np.repeat(first, count), np.repeat(blocks[first, 5], count), place]).astype(np.int32)


def _groups_of_rows(where: Geometry) -> list[FullRows | None]:
    found = {(rows.left, rows.right): rows for rows in where.layout(_ROWS).full_rows} if where.rows else {}
    return [found.get(cut) for cut in where.groups.full_rows]


def _full_rows(where: Geometry) -> list[NDArray[np.int64]]:
    """Each document's full rows, of all groups."""
    found = []
    for index in range(len(where.documents)):
        own = [
            rows.positions[rows.offsets[index] : rows.offsets[index + 1]]
            for rows in _groups_of_rows(where)
            if rows is not None
        ]
        found.append(np.unique(np.concatenate(own)) if own else np.zeros(0, np.int64))
    return found


def row_positions(where: Geometry) -> Table:
    """Positions of the full rows, document by document; at least one number, so that there is something to point to."""
    found = np.concatenate(_full_rows(where)).astype(np.int32) if where.documents else np.zeros(0, np.int32)
    return found if len(found) else np.zeros(1, np.int32)


def row_bits(where: Geometry) -> Table:
    """For each query in which groups it is a full row, one bit a group."""
    bits = np.zeros(max(where.documents[-1].q_stop, 1), dtype=np.int32)
    for group, rows in enumerate(_groups_of_rows(where)):
        if rows is None:
            continue
        for index, document in enumerate(where.documents):
            own = rows.positions[rows.offsets[index] : rows.offsets[index + 1]]
            bits[own - document.first_position + document.q_start] |= np.int32(1 << group)
    return bits


def lists(where: Geometry, axis: str) -> tuple[Table, Table, Table]:
    """What `Geometry.list_tables` says."""
    found = {(part.block, (part.left, part.right)): part for part in where.layout(_ROWS).lists}
    first, begins, entries = [], [], [np.zeros((0, 2), np.int64)]
    n_rows, n_entries = 0, 0
    for key in where.groups.lists:
        part = found.get(key)
        if part is None:  # nothing is listed at these lengths: every row is the same empty one
            longest = max((document.n_keys for document in where.documents), default=0) // key[0] + 2
            first.append([n_rows] * len(where.documents))
            begins.append(np.full(longest, n_entries))
            n_rows += longest
            continue
        begin, own = _rows_of(part, axis)
        offsets = part.row_offsets[:-1] - part.first_block if axis == "q" else part.column_offsets[:-1]
        first.append((offsets + n_rows).tolist())
        begins.append(begin + n_entries)
        entries.append(own)
        n_rows += len(begin)
        n_entries += len(own)
    table = np.concatenate(entries)
    table = table if len(table) else np.zeros((1, 2), np.int64)
    return np.array(first, dtype=np.int32), np.concatenate(begins).astype(np.int32), table.astype(np.int32)


def _rows_of(part: BlockList, axis: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where rows begin, and each entry's query block and key block, counted in its document."""
    if axis == "q":
        row = np.repeat(np.arange(len(part.indptr) - 1), np.diff(part.indptr))
        key_block = part.indices.astype(np.int64)
        begin = part.indptr
    else:
        row = part.transpose_indices.astype(np.int64)
        column = np.repeat(np.arange(len(part.transpose_indptr) - 1), np.diff(part.transpose_indptr))
        key_block = column - part.column_offsets[np.searchsorted(part.column_offsets, column, side="right") - 1]
        begin = part.transpose_indptr
    document = np.searchsorted(part.row_offsets, row, side="right") - 1
    query_block = row - part.row_offsets[document] + part.first_block[document]
    return begin, np.stack([query_block, key_block], axis=1)
