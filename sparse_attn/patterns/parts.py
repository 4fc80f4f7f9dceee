"""The parts that a layout consists of: what a kernel is told instead of a mask.

Positions count within the document. `left` and `right` say how many keys at or before the query (its own included) and
after it a part may touch; None is unlimited. Under causal attention `right` is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


def span_bounds(i: Positions, left: int | None, right: int | None, n_keys: int) -> tuple[Positions, Positions]:
    """First key and end of the keys within `left` and `right` of positions i."""
    low = np.zeros_like(i) if left is None else np.maximum(i - left + 1, 0)
    high = np.full_like(i, n_keys) if right is None else np.minimum(i + right + 1, n_keys)
    return low, high


class Chunk(NamedTuple):
    """Keys of the query's chunk of `size` positions, cut to `left` and `right`."""

    size: int
    left: int | None
    right: int | None


@dataclass(frozen=True)
class Interval:
    """One run of keys around each query: the hull of a window (1 key at least: the query's own) and of chunks.

    Computed from its parameters, never stored; low and high never decrease from one query to the next.
    """

    left: int | None
    right: int | None
    chunks: tuple[Chunk, ...] = ()

    def bounds(self, i: Positions, n_keys: int) -> tuple[Positions, Positions]:
        """The run [low, high) of each query position in i."""
        low, high = span_bounds(i, self.left, self.right, n_keys)
        for chunk in self.chunks:
            near_low, near_high = span_bounds(i, chunk.left, chunk.right, n_keys)
            start = i // chunk.size * chunk.size
            low = np.minimum(low, np.maximum(start, near_low))
            high = np.maximum(high, np.minimum(start + chunk.size, near_high))
        return low, high


@dataclass(frozen=True, eq=False)
class Columns:
    """Keys that all queries share, to be gathered once.

    Attributes:
        positions: ``[C]`` sorted key positions, one document after the other.
        offsets: ``[documents + 1]`` where each document's columns stand in `positions`.
        left, right: The cut that `within` made; None: none.
        before, after: ``[query blocks, 2]`` ranges of `positions` that some query of the block sees before and after
            its interval; columns inside the interval of all its queries are left out.
    """

    positions: NDArray[np.int32]
    offsets: NDArray[np.int64]
    left: int | None
    right: int | None
    before: NDArray[np.int32]
    after: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.positions, self.offsets, self.before, self.after))


@dataclass(frozen=True, eq=False)
class BlockList:
    """Whole key blocks for each query block of `block` positions (position // block), as compressed rows.

    Row `row_offsets[d] + position // block - first_block[d]` holds the key blocks of a query of document d; key block c
    covers key positions c * block to (c + 1) * block of the document. The transpose has one row for each key block of
    each document, at `column_offsets[d] + c`, and names query blocks by their row. Blocks that lie inside the interval
    of all their queries are left out.

    Attributes:
        indptr, indices: ``[rows + 1]``, ``[entries]`` compressed rows.
        transpose_indptr, transpose_indices: ``[key blocks + 1]``, ``[entries]`` the same pairs by key block.
    """

    block: int
    left: int | None
    right: int | None
    first_block: NDArray[np.int64]
    row_offsets: NDArray[np.int64]
    column_offsets: NDArray[np.int64]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    transpose_indptr: NDArray[np.int64]
    transpose_indices: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))


class DilatedPass(NamedTuple):
    """A window over every `dilation`-th token: i - j = m * dilation with -right <= m < left.

    To be run on tokens permuted into contiguous subsequences, and merged by its LSE. `residue` limits the pass to
    queries and keys with position % dilation == residue; None: all of them.
    """

    dilation: int
    left: int | None
    right: int | None
    residue: int | None = None


@dataclass(frozen=True, eq=False)
class FullRows:
    """Queries that see all keys within `left` and `right`: ``positions[offsets[d] : offsets[d + 1]]`` of document d."""

    positions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    left: int | None
    right: int | None

    @property
    def nbytes(self) -> int:
        return self.positions.nbytes + self.offsets.nbytes
