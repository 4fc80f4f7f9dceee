"""The exact number of kept pairs, by inclusion and exclusion over arithmetic progressions.

For one query, every term keeps a family of disjoint progressions: all x in [low, high) with x % modulus == residue.
A window is one with modulus 1, a dilated window one with the dilation as modulus, a random term one a block. Two
progressions meet in one progression again (the Chinese remainder theorem), so the union's size is the alternating sum
over all ways of taking at most one member from each family. All queries of a chunk are counted at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .chosen import Choice, ChosenBlocks, split_choice
from .documents import Document, check_examples, split_documents
from .hashed import Hashed, Rest, split_hashed
from .pattern import Lengths, Pattern, Within
from .random_blocks import draw_blocks
from .terms import Chunked, Dilated, Full, Global, Random, Sinks, Strided, Summaries, Term, Window

_CHUNK = 1 << 15  # queries counted at once: their vectors stay in the cache

Vector = NDArray[np.int64]


@dataclass
class Progression:
    """For each of N queries, the keys x in [low, high) with x % modulus == residue."""

    modulus: int
    residue: Vector
    low: Vector
    high: Vector

    def counts(self) -> Vector:
        upto_high = (self.high - 1 - self.residue) // self.modulus
        upto_low = (self.low - 1 - self.residue) // self.modulus
        return np.maximum(upto_high - upto_low, 0)

    def take(self, rows: NDArray[np.intp]) -> Progression:
        return Progression(self.modulus, self.residue[rows], self.low[rows], self.high[rows])


Family = list[Progression]


def count_pairs(
    pattern: Pattern,
    n_queries: int | None,
    n_keys: int | None,
    causal: bool,
    cu_seqlens_q: Lengths | None,
    cu_seqlens_k: Lengths | None,
) -> int:
    """The number of pairs that the pattern keeps; see `Pattern.pairs`."""
    documents = split_documents(n_queries, n_keys, cu_seqlens_q, cu_seqlens_k)
    check_examples(pattern, documents, packed=cu_seqlens_q is not None)
    counted: dict[tuple[Pattern, int, int], int] = {}
    total = 0
    for index, document in enumerate(documents):
        own = pattern if cu_seqlens_q is None else pattern.example(index)
        key = (own, document.n_queries, document.n_keys)
        if key not in counted:
            counted[key] = _count_document(own, document, causal)
        total += counted[key]
    return total


def _count_document(pattern: Pattern, document: Document, causal: bool) -> int:
    total = 0
    choice = split_hashed(pattern) or split_choice(pattern)  # the first refuses both together
    for start in range(document.first_position, document.n_keys, _CHUNK):
        positions = np.arange(start, min(start + _CHUNK, document.n_keys), dtype=np.int64)
        sizes = np.zeros_like(positions)
        _add_union_sizes(_families(pattern, positions, document.n_keys, causal), np.arange(len(positions)), 1, sizes)
        if choice is not None:
            _add_budget(choice, positions, document.n_keys, causal, sizes)
        total += int(sizes.sum())
    return total


def _add_union_sizes(
    families: list[Family], queries: NDArray[np.intp], sign: int, sizes: Vector, taken: Progression | None = None
) -> None:
    """Sum over all choices of at most one member a family, at least one in all; odd choices add, even ones subtract.

    `queries` says where in `sizes` each query of the families counts.
    """
    for index, family in enumerate(families):
        for member in family:
            met, rows = _meet(taken, member)
            if len(rows):
                sizes[queries[rows]] += sign * met.counts()
                rest = [[m.take(rows) for m in later] for later in families[index + 1 :]]
                _add_union_sizes(rest, queries[rows], -sign, sizes, met)


def _add_budget(choice: Choice | Rest, i: Vector, n_keys: int, causal: bool, sizes: Vector) -> None:
    """Add what a query may choose at most: the term's budget, the keys that it may see, and no more than those in all."""
    visible = Progression(1, np.zeros_like(i), np.zeros_like(i), np.full_like(i, n_keys))
    _cut(visible, i, n_keys, causal, None)
    within = Progression(1, visible.residue, visible.low.copy(), visible.high.copy())
    _cut(within, i, n_keys, causal, choice.limit)
    most = choice.term.budget
    budget = within.counts() if most is None else np.minimum(within.counts(), most)
    np.minimum(sizes + budget, visible.counts(), out=sizes)


def _meet(a: Progression | None, b: Progression) -> tuple[Progression, NDArray[np.intp]]:
    """The intersection of two progressions, and the queries for which it may be non-empty."""
    if a is None:
        rows = np.flatnonzero(b.low < b.high)
        return b.take(rows), rows
    low, high = np.maximum(a.low, b.low), np.minimum(a.high, b.high)
    shared = math.gcd(a.modulus, b.modulus)
    rows = np.flatnonzero((low < high) & ((b.residue - a.residue) % shared == 0))
    # x = a.residue + a.modulus * steps, with steps chosen so that x % b.modulus == b.residue
    period = b.modulus // shared
    steps = (b.residue[rows] - a.residue[rows]) // shared * pow(a.modulus // shared, -1, period) % period
    residue = a.residue[rows] + a.modulus * steps
    return Progression(a.modulus * period, residue, low[rows], high[rows]), rows


def _families(pattern: Pattern, i: Vector, n_keys: int, causal: bool) -> list[Family]:
    """What each term keeps for queries at positions i; intervals, which all hold the query itself, come merged."""
    merged: Progression | None = None
    families: list[Family] = []
    for clause in pattern.terms:
        term, limit = (clause.term, clause.limit) if isinstance(clause, Within) else (clause, None)
        for family, holds_query in _term_families(term, i, n_keys, causal):
            for member in family:
                _cut(member, i, n_keys, causal, limit)
            if not holds_query:
                families.append(family)
            elif merged is None:
                merged = family[0]
            else:
                merged.low = np.minimum(merged.low, family[0].low)
                merged.high = np.maximum(merged.high, family[0].high)
    return families if merged is None else [[merged], *families]


def _cut(member: Progression, i: Vector, n_keys: int, causal: bool, limit: Window | None) -> None:
    member.low, member.high = np.maximum(member.low, 0), np.minimum(member.high, n_keys)
    if causal:
        member.high = np.minimum(member.high, i + 1)
    if limit is not None:
        member.low = np.maximum(member.low, i - limit.left + 1)
        member.high = np.minimum(member.high, i + limit.ahead + 1)


def _term_families(term: Term, i: Vector, n_keys: int, causal: bool) -> list[tuple[Family, bool]]:
    """Families of one term before cuts, each with whether it is one interval around the query."""
    zero, end = np.zeros_like(i), np.full_like(i, n_keys)
    match term:
        case Window():
            return [([Progression(1, zero, i - term.left + 1, i + term.ahead + 1)], True)]
        case Chunked():
            low = i // term.size * term.size
            return [([Progression(1, zero, low, low + term.size)], True)]
        case Full():
            return [([Progression(1, zero, zero, end)], True)]
        case Sinks():
            return [([Progression(1, zero, zero, np.full_like(i, term.n))], False)]
        case Dilated():
            # A modulus of n_keys or more leaves one key; capping it keeps products of moduli inside int64.
            modulus = min(term.dilation, n_keys)
            span = n_keys if term.window is None else min(term.window * term.dilation, n_keys)
            return [([Progression(modulus, i % modulus, i - span + 1, i + span)], False)]
        case Strided():
            modulus = min(term.stride, n_keys)
            seen = zero + (term.offset < n_keys)
            if term.rows == "strided":
                seen = seen * (i % term.stride == term.offset)
            return [([Progression(modulus, zero + term.offset % modulus, zero, end * seen)], False)]
        case Global():
            keys = [Progression(1, zero, zero + first, zero + stop) for first, stop in _runs(term.shared, n_keys)]
            row = np.isin(i, term.shared)
            return [(keys, False), ([Progression(1, zero, np.where(row, 0, i), np.where(row, n_keys, i))], False)]
        case Random():
            blocks, which = np.unique(i // term.block, return_inverse=True)
            drawn = draw_blocks(term, blocks, n_keys, causal)[which]
            low, size = drawn * term.block, np.where(drawn < 0, 0, term.block)
            return [([Progression(1, zero, low[:, r], (low + size)[:, r]) for r in range(low.shape[1])], False)]
        case Summaries() | ChosenBlocks() | Hashed():
            return []
        case _:
            raise NotImplementedError(f"pairs: {type(term).__name__} has no count")


def _runs(positions: tuple[int, ...], n_keys: int) -> list[tuple[int, int]]:
    """Maximal runs of consecutive positions below n_keys, as (first, stop)."""
    inside = np.array([p for p in positions if p < n_keys], dtype=np.int64)
    if not len(inside):
        return []
    pieces = np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1)
    return [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]
