"""Hashing as a term: which keys share a query's bucket is known only with their content."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .chosen import split_choice
from .pattern import Pattern, Union, Within
from .terms import Positions, Term, Window, _set_count


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
class Rest:
    """A pattern taken apart: the term that hashes, the window that `within` cuts it to, and what is left."""

    term: Hashed
    limit: Window | None
    static: Pattern | None


@lru_cache(maxsize=256)
def split_hashed(pattern: Pattern) -> Rest | None:
    """The pattern's one `Hashed` term and the rest; None without such a term.

    Raises:
        ValueError: more than one such term, or a term that chooses blocks beside it.
    """
    found = [clause for clause in pattern.terms if _hashed(clause) is not None]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"pattern: at most one Hashed term, got {found[0]!r} and {found[1]!r}")
    if (choice := split_choice(pattern)) is not None:
        raise ValueError(f"pattern: {choice.term!r} and {found[0]!r} cannot both choose")
    rest = tuple(clause for clause in pattern.terms if clause is not found[0])
    term = _hashed(found[0])
    assert term is not None
    limit = found[0].limit if isinstance(found[0], Within) else None
    return Rest(term, limit, None if not rest else rest[0] if len(rest) == 1 else Union(rest))


def _hashed(clause: Term | Within) -> Hashed | None:
    term = clause.term if isinstance(clause, Within) else clause
    return term if isinstance(term, Hashed) else None
