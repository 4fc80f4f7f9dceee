"""A pattern: which keys each query may look at, as a small immutable value.

A pattern is a union of terms (`terms.py`). Everything that the library knows about it (its mask, its exact number of
kept pairs, the layout that kernels read, how far information travels) is asked of the pattern itself; each answer is
worked out in a file of its own, and `mask` shares no code with `layout` or `pairs`, so that each can judge the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .layout import Layout
    from .reach import Reach
    from .terms import Term, Window

Lengths = Sequence[int] | NDArray[np.integer]


class Pattern(ABC):
    """The keys that each query may look at; immutable, hashable, equal by value.

    Build one from terms with ``|`` (``Window(2048) | Sinks(4)``) or from text (``parse("window(2048) | sinks(4)")``);
    ``repr`` gives that text back. In a sequence of S keys, query t of T stands at position S - T + t.

    Attributes:
        text: What ``repr`` gives; written once, when the pattern is made, so that reading it costs nothing.
    """

    text: str

    @property
    @abstractmethod
    def terms(self) -> tuple[Term | Within, ...]:
        """The terms whose union this pattern is, each possibly cut to a window."""

    def __or__(self, other: Pattern) -> Pattern:
        if not isinstance(other, Pattern):
            raise TypeError(_not_united(other))
        merged = tuple(dict.fromkeys(self.terms + other.terms))
        return merged[0] if len(merged) == 1 else Union(merged)

    def __ror__(self, other: object) -> Pattern:
        raise TypeError(_not_united(other))

    def within(self, window: Window) -> Pattern:
        """This pattern with every term, sinks and global rows included, cut to a window around the query.

        A key stays if this pattern and `window` both keep it: a model's own sliding window stays in force.

        >>> Sinks(4).within(Window(8)).mask(10)[9].nonzero()[0].tolist()
        [2, 3]
        """
        cut = tuple(dict.fromkeys(_cut(term, window) for term in self.terms))
        return cut[0] if len(cut) == 1 else Union(cut)

    @property
    def examples(self) -> int | None:
        """How many batch examples (or packed documents) this pattern tells apart; None if it is the same for all."""
        counts = {n for term in self.terms if (n := term.examples) is not None}
        if len(counts) > 1:
            raise ValueError(f"pattern: its Global terms list positions for different numbers of examples: {counts}")
        return counts.pop() if counts else None

    def example(self, index: int) -> Pattern:
        """The pattern of one batch example or packed document."""
        if self.examples is None:
            return self
        chosen = tuple(dict.fromkeys(term.example(index) for term in self.terms))
        return chosen[0] if len(chosen) == 1 else Union(chosen)

    def mask(
        self,
        n_queries: int | None = None,
        n_keys: int | None = None,
        *,
        causal: bool = True,
        cu_seqlens_q: Lengths | None = None,
        cu_seqlens_k: Lengths | None = None,
    ) -> NDArray[np.bool_]:
        """The whole mask, element by element: true where query t may look at key j.

        Args:
            n_queries, n_keys: T and S; S defaults to T. With `cu_seqlens_q` both may be left out.
            causal: Cut every term to keys at or before the query.
            cu_seqlens_q, cu_seqlens_k: Document boundaries ``[n + 1]``, from 0 to T (to S; default: those of the
                queries). A document's queries see only that document's keys, and positions count within it.

        Returns:
            Boolean array ``[T, S]``.

        Raises:
            ValueError: lengths that are negative, disagree, or a document with more queries than keys.

        Cost: O(T x S x terms) time and memory: for pictures and tests.

        >>> Window(2).mask(3).astype(int).tolist()
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
        """
        from .mask import dense_mask

        return dense_mask(self, n_queries, n_keys, causal, cu_seqlens_q, cu_seqlens_k)

    def pairs(
        self,
        n_queries: int | None = None,
        n_keys: int | None = None,
        *,
        causal: bool = True,
        cu_seqlens_q: Lengths | None = None,
        cu_seqlens_k: Lengths | None = None,
    ) -> int:
        """The exact number of (query, key) pairs that `mask` keeps, without building it.

        Arguments and errors are those of `mask`. Keys that two terms name count once. The extra keys of `Anchors` are
        no keys of the sequence and are not counted: they add `extra_keys` to every query. What `TopBlocks` and
        `Hashed` choose is not known here: each query counts k * block or rounds * 2 * chunk keys more, up to all that
        it may see, which is an upper bound.

        Cost: constant memory (queries are counted some ten thousand at a time); time O(T) times the number of ways in
        which terms can overlap (inclusion and exclusion).

        >>> Window(2048).pairs(1_048_576)
        2145387520
        """
        from .pairs import count_pairs

        return count_pairs(self, n_queries, n_keys, causal, cu_seqlens_q, cu_seqlens_k)

    def layout(
        self,
        n_queries: int | None = None,
        n_keys: int | None = None,
        block_q: int = 128,
        block_k: int = 128,
        *,
        causal: bool = True,
        cu_seqlens_q: Lengths | None = None,
        cu_seqlens_k: Lengths | None = None,
    ) -> Layout:
        """What a kernel must know: interval, columns, lists of blocks, dilated passes and extra keys.

        Arguments and errors are those of `mask`; `block_q` and `block_k` are the kernel's tile.

        Cost: O(kept blocks) time and memory; nothing of size T x S is evaluated at any granularity.

        >>> Window(4096).layout(1_048_576).interval
        Interval(left=4096, right=0, chunks=())
        """
        from .layout import build_layout

        return build_layout(self, n_queries, n_keys, block_q, block_k, causal, cu_seqlens_q, cu_seqlens_k)

    def reach(self, layers: int, *, causal: bool = True) -> Reach:
        """How far information can travel through a stack of layers, in a sequence of any length.

        >>> Window(2048).reach(30)
        Reach(layers=30, tokens=61411, layers_to_any=None)
        """
        from .reach import compute_reach

        return compute_reach(self, layers, causal)

    @property
    def extra_keys(self) -> int:
        """Keys beside the sequence's own that every query sees (the anchors)."""
        return sum(term.extra_keys for term in self.terms)

    def __repr__(self) -> str:
        return self.text

    def _name(self, text: str) -> None:
        object.__setattr__(self, "text", text)


@dataclass(frozen=True, repr=False)
class Within(Pattern):
    """One term, cut to a window around the query."""

    term: Term
    limit: Window

    def __post_init__(self) -> None:
        self._name(f"{self.term!r}.within({self.limit!r})")

    @property
    def terms(self) -> tuple[Term | Within, ...]:
        return (self,)

    @property
    def examples(self) -> int | None:
        return self.term.examples

    @property
    def extra_keys(self) -> int:
        return self.term.extra_keys

    def example(self, index: int) -> Within:
        return Within(self.term.example(index), self.limit)

    def keeps(self, i: NDArray[np.int64], j: NDArray[np.int64], n_keys: int, causal: bool) -> NDArray[np.bool_]:
        """The term's rule and the window's, for query positions i and key positions j."""
        return self.term.keeps(i, j, n_keys, causal) & self.limit.keeps(i, j, n_keys, causal)


class Union(Pattern):
    """Every key that one of several terms keeps. Order and repetition of the terms do not matter."""

    def __init__(self, terms: tuple[Term | Within, ...]) -> None:
        self._terms = terms
        self._name(self._spelled())

    @property
    def terms(self) -> tuple[Term | Within, ...]:
        return self._terms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Union) and frozenset(self.terms) == frozenset(other.terms)

    def __hash__(self) -> int:
        return hash(frozenset(self.terms))

    def _spelled(self) -> str:
        limits = {term.limit if isinstance(term, Within) else None for term in self.terms}
        if len(limits) == 1 and (limit := limits.pop()) is not None:
            inner = " | ".join(repr(term.term) for term in self.terms if isinstance(term, Within))
            return f"({inner}).within({limit!r})"
        return " | ".join(repr(term) for term in self.terms)


def _not_united(other: object) -> str:
    hint = ""
    if isinstance(other, str):
        hint = "; text goes through sparse_attn.parse"
    elif isinstance(other, type) and issubclass(other, Pattern):
        hint = f"; {other.__name__} is missing its arguments"
    elif other is None:
        hint = "; where there is nothing to add, leave it out"
    return f"pattern: '|' unites patterns and terms such as Window(2048) | Sinks(4), got {other!r}{hint}"


def _cut(term: Term | Within, window: Window) -> Within:
    from .terms import Window

    if not isinstance(window, Window):
        raise ValueError(f"within: window must be a Window, got {window!r}")
    if term.extra_keys:
        raise ValueError(
            f"within: {term!r} cannot be cut to a window: its summary keys carry information from outside every window"
        )
    if isinstance(term, Within):
        return Within(term.term, term.limit.intersect(window))
    return Within(term, window)
