"""Lengths and document boundaries: the geometry that mask, pairs and layout share with `attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .pattern import Pattern


class Document(NamedTuple):
    """Queries q_start .. q_stop attend to keys k_start .. k_stop; the last query stands at the last key's position."""

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int

    @property
    def n_queries(self) -> int:
        return self.q_stop - self.q_start

    @property
    def n_keys(self) -> int:
        return self.k_stop - self.k_start

    @property
    def first_position(self) -> int:
        """Position of the first query, counted in the document."""
        return self.n_keys - self.n_queries


def split_documents(
    n_queries: int | None,
    n_keys: int | None,
    cu_seqlens_q: Sequence[int] | NDArray[np.integer] | None,
    cu_seqlens_k: Sequence[int] | NDArray[np.integer] | None,
) -> tuple[Document, ...]:
    """The documents of a packed sequence, or the sequence itself as one document.

    Raises:
        ValueError: lengths negative or in disagreement, boundaries that do not run from 0 upwards to the length, or a
            document with more queries than keys.
    """
    if cu_seqlens_q is None:
        if cu_seqlens_k is not None:
            raise ValueError("cu_seqlens_k was given without cu_seqlens_q: packed keys need packed queries")
        if n_queries is None:
            raise ValueError("n_queries is missing: give a number of queries, or cu_seqlens_q")
        n_queries = _length("n_queries", n_queries)
        n_keys = n_queries if n_keys is None else _length("n_keys", n_keys)
        if n_queries > n_keys:
            raise ValueError(
                f"n_queries must be at most n_keys {n_keys} (queries are the last positions), got {n_queries}"
            )
        return (Document(0, n_queries, 0, n_keys),)
    q_bounds = _boundaries("cu_seqlens_q", cu_seqlens_q, "n_queries", n_queries)
    if cu_seqlens_k is None:
        if n_keys is not None and n_keys != q_bounds[-1]:
            raise ValueError(f"cu_seqlens_k is missing: n_keys is {n_keys}, but cu_seqlens_q ends at {q_bounds[-1]}")
        k_bounds = q_bounds
    else:
        k_bounds = _boundaries("cu_seqlens_k", cu_seqlens_k, "n_keys", n_keys)
    if len(q_bounds) != len(k_bounds):
        raise ValueError(
            f"cu_seqlens_k names {len(k_bounds) - 1} documents, but cu_seqlens_q names {len(q_bounds) - 1}"
        )
    documents = tuple(map(Document, q_bounds[:-1], q_bounds[1:], k_bounds[:-1], k_bounds[1:]))
    for index, document in enumerate(documents):
        if document.n_queries > document.n_keys:
            raise ValueError(
                f"cu_seqlens_q gives document {index} {document.n_queries} queries, more than its {document.n_keys} "
                "keys"
            )
    return documents


def check_examples(pattern: Pattern, documents: Sequence[Document], *, packed: bool) -> None:
    """Raise a ValueError if the pattern lists positions for another number of documents than there are."""
    if packed and pattern.examples not in (None, len(documents)):
        raise ValueError(
            f"pattern lists Global positions for {pattern.examples} documents, but cu_seqlens_q names {len(documents)}"
        )


def _length(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name} must be a non-negative integer, got {value!r}")
    return int(value)


def _boundaries(
    name: str, given: Sequence[int] | NDArray[np.integer], length_name: str, length: int | None
) -> list[int]:
    try:
        bounds = np.asarray(given)
    except ValueError:  # lists of different lengths
        bounds = np.zeros((0, 0))
    if bounds.ndim != 1 or bounds.size < 1 or bounds.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a one-dimensional list of integers, got {given!r}")
    bounds = bounds.astype(np.int64)
    if bounds[0] != 0 or (np.diff(bounds) < 0).any():
        raise ValueError(f"{name} must start at 0 and never decrease, got {given!r}")
    if length is not None and bounds[-1] != length:
        raise ValueError(f"{name} must end at {length_name} {length}, got {int(bounds[-1])}")
    return list(map(int, bounds))
