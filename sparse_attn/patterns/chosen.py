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


class ChosenBlocks(Term):
    """A term that names whole key blocks for each tile of `rows` positions, once their content is known."""

    block: int
    rows: int

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        return np.zeros(np.broadcast_shapes(i.shape, j.shape), dtype=bool)

    @property
    def most_blocks(self) -> int | None:
        """The most blocks that a tile may choose; None: all."""
        raise NotImplementedError

    @property
    def budget(self) -> int | None:
        """Keys of chosen blocks that a query sees at most; None: all."""
        return None if self.most_blocks is None else self.most_blocks * self.block

    def tiles(self, n_queries: int, n_keys: int) -> int:
        """Rows of a choice that the last n_queries of n_keys positions touch."""
        if not n_queries:
            return 0
        return (n_keys - 1) // self.rows - (n_keys - n_queries) // self.rows + 1


@dataclass(frozen=True, repr=False)
class TopBlocks(ChosenBlocks):
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
    def most_blocks(self) -> int:
        return self.k


@dataclass(frozen=True)
class Choice:
    """A pattern taken apart: the term that chooses, the window that `within` cuts it to, and what is left."""

    term: ChosenBlocks
    limit: Window | None
    static: Pattern | None


@lru_cache(maxsize=256)
def split_choice(pattern: Pattern) -> Choice | None:
    """The pattern's one term that chooses blocks and its static part; None without such a term.

    Raises:
        ValueError: more than one such term.

    >>> split_choice(parse("topblocks(8) | window(512)")).static
    window(512)
    """
    choosing = [clause for clause in pattern.terms if isinstance(_inner(clause), ChosenBlocks)]
    if not choosing:
        return None
    if len(choosing) > 1:
        raise ValueError(f"pattern: at most one {_kinds(choosing)} term, got {choosing[0]!r} and {choosing[1]!r}")
    rest = tuple(clause for clause in pattern.terms if clause is not choosing[0])
    static = None if not rest else rest[0] if len(rest) == 1 else Union(rest)
    term = _inner(choosing[0])
    assert isinstance(term, ChosenBlocks)
    return Choice(term, choosing[0].limit if isinstance(choosing[0], Within) else None, static)


def _inner(clause: Term | Within) -> Term:
    return clause.term if isinstance(clause, Within) else clause


def _kinds(choosing: list[Term | Within]) -> str:
    return " or ".join(dict.fromkeys(type(_inner(clause)).__name__ for clause in choosing))
