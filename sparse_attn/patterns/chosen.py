"""Terms whose keys the content chooses: how much may be chosen is part of the pattern, what is chosen is not.

Such a term keeps nothing in `mask`, as `Anchors` does; its budget counts in `pairs`. An implementation attends through the
static part of the pattern and over the chosen keys that no static part names, and merges the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .pattern import Pattern, Union, Within
from .terms import Positions, Term, Window, _set_count


@dataclass(frozen=True, repr=False)
class TopBlocks(Term):
    """The k key blocks that score best for a query, or for a tile of queries.

    Block b holds positions b * block to (b + 1) * block of the document. Which blocks a query chose is given to
    `attention` as `selected`, or found by it (`select_blocks`); a key of a chosen block counts if it is not after the
    query (causal), and if no static part of the pattern names it.

    Args:
        k: Blocks that are chosen, at most.
        block: Keys of one block.
        rows: Positions that choose together: query i reads row i // rows. 1: each query chooses for itself, for
            training, prefill and decode. More: a tile scores with all its queries, those after i included, so that
            prefill is quick; that lets the choice leak, and no gradient may follow it.

    Source: Yuan et al. 2025, arXiv:2502.11089; Tang et al. 2024, arXiv:2406.10774; Lu et al. 2025, arXiv:2502.13189.
    """

    k: int
    block: int = 64
    rows: int = 1

    def _check(self) -> None:
        for name in ("k", "block", "rows"):
            _set_count(self, name, minimum=1)

    @property
    def budget(self) -> int:
        """Keys that a query sees at most."""
        return self.k * self.block

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        return np.zeros(np.broadcast_shapes(i.shape, j.shape), dtype=bool)

    def tiles(self, n_queries: int, n_keys: int) -> int:
        """Rows of a choice that the last n_queries of n_keys positions touch."""
        if not n_queries:
            return 0
        return (n_keys - 1) // self.rows - (n_keys - n_queries) // self.rows + 1


@dataclass(frozen=True, repr=False)
class Hashed(Term):
    """Keys that hash to the query's bucket, in any of several rounds; causal attention only.

    The keys of a bucket are cut into chunks as they come: a key's rank is the number of earlier keys in its own bucket, its
    chunk is rank // chunk. A query sees, of the keys up to itself, those of its bucket's last chunk and of the one
    before: between chunk + 1 and 2 * chunk of the latest keys, once there are so many. The original cuts the sorted
    sequence into chunks, so that one later token moves the borders for earlier queries.

    Args:
        rounds: Independent hashes; a key that several of them show counts once.
        buckets: Of each hash, an even number; a parameter, never a function of the length.
        chunk: Keys of a bucket that are cut off together.
        seed: Of the random directions that queries and keys are hashed by (`ops.hashed.hash_buckets`).

    Source: Kitaev et al. 2020, arXiv:2001.04451.
    """

    rounds: int
    buckets: int
    chunk: int = 64
    seed: int = 0

    def _check(self) -> None:
        for name in ("rounds", "buckets", "chunk"):
            _set_count(self, name, minimum=1)
        _set_count(self, "seed", minimum=0)
        if self.buckets % 2:
            raise ValueError(f"Hashed: buckets must be even, for directions and their opposites, got {self.buckets}")
        if self.seed >= 1 << 63:
            raise ValueError(f"Hashed: seed must be below 2**63, got {self.seed}")

    @property
    def budget(self) -> int:
        """Keys that a query sees at most."""
        return self.rounds * 2 * self.chunk

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        return np.zeros(np.broadcast_shapes(i.shape, j.shape), dtype=bool)


@dataclass(frozen=True)
class Choice:
    """A pattern taken apart: the term that chooses, the window that `within` cuts it to, and what is left."""

    term: TopBlocks
    limit: Window | None
    static: Pattern | None


@lru_cache(maxsize=256)
def split_choice(pattern: Pattern) -> Choice | None:
    """The pattern's one `TopBlocks` term and its static part; None without such a term.

    Raises:
        ValueError: more than one such term.

    >>> split_choice(parse("topblocks(8) | window(512)")).static
    window(512)
    """
    found = _split(pattern, TopBlocks)
    if found is None:
        return None
    assert isinstance(found[0], TopBlocks)
    return Choice(found[0], *found[1:])


@dataclass(frozen=True)
class Rest:
    """A pattern taken apart: the term that hashes, the window that `within` cuts it to, and what is left."""

    term: Hashed
    limit: Window | None
    static: Pattern | None


@lru_cache(maxsize=256)
def split_hashed(pattern: Pattern) -> Rest | None:
    """The pattern's one `Hashed` term and the rest; None without such a term.

    Raises:
        ValueError: more than one such term, or a `TopBlocks` term beside it.
    """
    found = _split(pattern, Hashed)
    if found is None:
        return None
    if split_choice(pattern) is not None:
        raise ValueError(f"pattern: TopBlocks and Hashed cannot both choose, got {pattern!r}")
    assert isinstance(found[0], Hashed)
    return Rest(found[0], *found[1:])


def _split(pattern: Pattern, kind: type[Term]) -> tuple[Term, Window | None, Pattern | None] | None:
    choosing = [clause for clause in pattern.terms if isinstance(_inner(clause), kind)]
    if not choosing:
        return None
    if len(choosing) > 1:
        raise ValueError(f"pattern: at most one {kind.__name__} term, got {choosing[0]!r} and {choosing[1]!r}")
    rest = tuple(clause for clause in pattern.terms if clause is not choosing[0])
    static = None if not rest else rest[0] if len(rest) == 1 else Union(rest)
    return _inner(choosing[0]), choosing[0].limit if isinstance(choosing[0], Within) else None, static


def _inner(clause: Term | Within) -> Term:
    return clause.term if isinstance(clause, Within) else clause
