"""What the kernels are told of a pattern and its lengths, cached: the layers of a model ask for the same few."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...patterns import Chunked, Dilated, Full, Pattern, Sinks, Strided, Window
from ...patterns.documents import Document, split_documents
from ...patterns.parts import Columns, Interval
from ...patterns.pattern import Within

_FAR = 1 << 30  # stands for an unlimited side; position arithmetic stays inside 32 bits


@dataclass(frozen=True)
class ColumnTable:
    """The columns of all documents, one document after the other.

    Attributes:
        count: Their number.
        positions: ``[columns]`` key positions in the document, int32.
        tokens: ``[columns]`` where they stand in k, int64.
        left, right: How far before and after it a query sees columns.
    """

    count: int
    positions: Tensor
    tokens: Tensor
    left: int
    right: int


@dataclass(frozen=True)
class Geometry:
    """One pattern over one set of lengths.

    Attributes:
        pattern, causal: What it was made from.
        interval: Left, right, chunk, chunk_left and chunk_right, as the kernels take them.
        has_interval: False if the queries have columns only.
        has_chunk: Whether the chunk's three mean anything.
        has_columns: Whether any term names columns.
        documents: The documents of a packed call; a plain one is one document.
        packed: Whether the kernels read the documents' boundaries.
    """

    pattern: Pattern
    causal: bool
    interval: tuple[int, int, int, int, int]
    has_interval: bool
    has_chunk: bool
    has_columns: bool
    documents: tuple[Document, ...]
    packed: bool

    def columns(self, device: torch.device) -> ColumnTable | None:
        """The columns, or None if there are none at these lengths."""
        return _column_table(self, device) if self.has_columns else None

    def column_ranges(self, rows: int, device: torch.device) -> Tensor | None:
        """For each block of so many query rows, which columns it reads: before its interval, and after it, ``[blocks, 4]``."""
        return _column_ranges(self, rows, device) if self.has_columns else None

    def blocks(self, rows: int, axis: str, device: torch.device) -> tuple[int, Tensor | None, Tensor | None]:
        """How many blocks of so many query rows (axis "q"), keys ("k") or columns ("c") there are, and the packed tables.

        Returns:
            The number of blocks, the blocks ``[blocks, 3]`` (document, first row, end) and the documents'
            boundaries ``[documents, 4]``, int32 on the device; None for both without packing.
        """
        if not self.packed:
            document = self.documents[0]
            columns = self.columns(device) if axis == "c" else None
            count = columns.count if columns else {"q": document.n_queries, "k": document.n_keys, "c": 0}[axis]
            return -(-count // rows), None, None
        return _tables(self, rows, axis, device)


@lru_cache(maxsize=64)
def geometry(
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    causal: bool,
    cu_seqlens_q: tuple[int, ...] | None,
    cu_seqlens_k: tuple[int, ...] | None,
) -> Geometry:
    """The geometry of a pattern of one interval around each query, and columns.

    Raises:
        NotImplementedError: the pattern has parts that the kernels do not read yet.
    """
    refused = [repr(clause) for clause in pattern.terms if not _served(clause)]
    if refused:
        raise NotImplementedError(
            f"implementation 'triton' has no kernel for {refused[0]} yet, only for unions of window, chunked, full, "
            "sinks and strided; use implementation='reference'"
        )
    # Of one token, the layout tells what the terms reduce to; it costs microseconds at any length.
    layout = pattern.layout(1, block_q=1, block_k=1, causal=causal)
    interval = layout.interval or Interval(1, 0)
    if len(interval.chunks) > 1:
        raise NotImplementedError(
            f"implementation 'triton' takes one chunk size, {pattern!r} has {len(interval.chunks)}; use 'reference'"
        )
    columns = [clause for clause in pattern.terms if _names_columns(clause)]
    limits = {clause.limit if isinstance(clause, Within) else None for clause in columns}
    if len(limits) > 1:
        raise NotImplementedError(
            f"implementation 'triton' takes columns with one limit, those of {pattern!r} differ; use 'reference'"
        )
    return Geometry(
        pattern=pattern,
        causal=causal,
        interval=_numbers(interval),
        has_interval=layout.interval is not None,
        has_chunk=bool(interval.chunks),
        has_columns=bool(limits),
        documents=split_documents(n_queries, n_keys, cu_seqlens_q, cu_seqlens_k),
        packed=cu_seqlens_q is not None,
    )


def _served(clause: Pattern) -> bool:
    term = clause.term if isinstance(clause, Within) else clause
    return (
        isinstance(term, Window | Chunked | Full | Sinks)
        or (isinstance(term, Strided) and (term.rows == "all" or term.stride == 1))
        or (isinstance(term, Dilated) and term.dilation == 1)
    )


def _names_columns(clause: Pattern) -> bool:
    term = clause.term if isinstance(clause, Within) else clause
    return isinstance(term, Sinks) or (isinstance(term, Strided) and term.stride > 1)


def _numbers(interval: Interval) -> tuple[int, int, int, int, int]:
    chunk = interval.chunks[0] if interval.chunks else (1, 1, 0)
    sides = (interval.left, interval.right, *chunk)
    left, right, size, chunk_left, chunk_right = (_FAR if side is None else min(side, _FAR) for side in sides)
    return left, right, size, chunk_left, chunk_right


@lru_cache(maxsize=64)
def _tables(where: Geometry, rows: int, axis: str, device: torch.device) -> tuple[int, Tensor, Tensor]:
    offsets = None if axis != "c" else _layout_columns(where, rows)
    blocks = []
    for index, document in enumerate(where.documents):
        if axis == "c":
            bounds = (0, 0) if offsets is None else (int(offsets.offsets[index]), int(offsets.offsets[index + 1]))
        else:
            bounds = (document.q_start, document.q_stop) if axis == "q" else (document.k_start, document.k_stop)
        starts = np.arange(*bounds, rows, dtype=np.int32)
        stops = np.minimum(starts + rows, bounds[1])
        blocks.append(np.stack([np.full_like(starts, index), starts, stops], axis=1))
    table = torch.from_numpy(np.concatenate(blocks).astype(np.int32))
    boundaries = torch.from_numpy(np.array(where.documents, dtype=np.int32))
    return len(table), table.to(device), boundaries.to(device)


@lru_cache(maxsize=64)
def _layout_columns(where: Geometry, rows: int) -> Columns | None:
    lengths: dict[str, Any] = {"n_queries": where.documents[-1].q_stop, "n_keys": where.documents[-1].k_stop}
    if where.packed:
        first = where.documents[0]
        lengths |= {
            "cu_seqlens_q": [first.q_start, *(document.q_stop for document in where.documents)],
            "cu_seqlens_k": [first.k_start, *(document.k_stop for document in where.documents)],
        }
    columns = where.pattern.layout(**lengths, block_q=rows, block_k=rows, causal=where.causal).columns
    return columns[0] if columns else None


@lru_cache(maxsize=64)
def _column_table(where: Geometry, device: torch.device) -> ColumnTable | None:
    columns = _layout_columns(where, 128)
    if columns is None:
        return None
    starts = np.repeat([document.k_start for document in where.documents], np.diff(columns.offsets))
    left, right = (_FAR if side is None else min(side, _FAR) for side in (columns.left, columns.right))
    return ColumnTable(
        count=len(columns.positions),
        positions=torch.from_numpy(columns.positions).to(device),
        tokens=torch.from_numpy(columns.positions + starts).to(device, torch.int64),
        left=left,
        right=right,
    )


@lru_cache(maxsize=64)
def _column_ranges(where: Geometry, rows: int, device: torch.device) -> Tensor | None:
    columns = _layout_columns(where, rows)
    if columns is None:
        return None
    return torch.from_numpy(np.concatenate([columns.before, columns.after], axis=1)).to(device)
