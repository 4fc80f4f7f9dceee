"""The terms that patterns are built from: parameters, their checks, and the rule for one query and one key.

`keeps` is each term's definition, written for a query position i and a key position j (numpy broadcasts them). The
causal cut j <= i is applied once, in `mask.py`. Nothing here knows about blocks or kernels.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pattern import Pattern, Within

Positions = NDArray[np.int64]


class Term(Pattern):
    """One rule; a pattern by itself."""

    @property
    def terms(self) -> tuple[Term | Within, ...]:
        return (self,)

    @property
    def examples(self) -> int | None:
        return None

    def example(self, index: int) -> Term:
        return self

    @property
    def extra_keys(self) -> int:
        return 0

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        """Whether a query at position i may look at the key at position j of n_keys, before the causal cut."""
        raise NotImplementedError(f"{type(self).__name__} has no rule for single keys")

    def __post_init__(self) -> None:
        self._check()
        self._name(self._spelled())

    def _check(self) -> None:
        """Raise a ValueError where a parameter is none, and bring all into one form."""

    def _spelled(self) -> str:
        given: list[str] = []
        for field in fields(self):  # type: ignore[arg-type]  # every term is a dataclass
            value = getattr(self, field.name)
            if value == field.default:
                continue
            plain = not given or "=" not in given[-1]
            in_order = plain and len(given) == [f.name for f in fields(self)].index(field.name)  # type: ignore[arg-type]
            given.append(repr(value) if in_order else f"{field.name}={value!r}")
        return f"{type(self).__name__.lower()}({', '.join(given)})"


@dataclass(frozen=True, repr=False)
class Window(Term):
    """A sliding window: i - left < j <= i + right.

    Args:
        left: Keys at or before the query, its own included; at least 1.
        right: Keys after the query. None mirrors `left` (i - left < j < i + left); under causal attention the keys
            after the query are cut whatever `right` says.

    Source: Beltagy et al. 2020, arXiv:2004.05150.
    """

    left: int
    right: int | None = None

    def _check(self) -> None:
        _set_count(self, "left", minimum=1)
        if self.right is not None:
            _set_count(self, "right", minimum=0)

    @property
    def ahead(self) -> int:
        """Keys after the query in bidirectional use."""
        return self.left - 1 if self.right is None else self.right

    def intersect(self, other: Window) -> Window:
        """The window of the keys that both keep."""
        left = min(self.left, other.left)
        ahead = min(self.ahead, other.ahead)
        return Window(left) if ahead == left - 1 else Window(left, ahead)

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        return (i - self.left < j) & (j <= i + self.ahead)


@dataclass(frozen=True, repr=False)
class Chunked(Term):
    """Keys of the query's own chunk: j // size == i // size."""

    size: int

    def _check(self) -> None:
        _set_count(self, "size", minimum=1)

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        return i // self.size == j // self.size


@dataclass(frozen=True, repr=False)
class Full(Term):
    """Every key."""

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        return (i >= 0) & (j >= 0)


@dataclass(frozen=True, repr=False)
class Dilated(Term):
    """A window with gaps: (i - j) % dilation == 0 and abs(i - j) < window * dilation.

    Args:
        window: Keys on each side, the query's own included; None: unlimited (the Sparse Transformer's strided
            pattern).
        dilation: Distance between neighbouring keys; at least 1.

    Source: Beltagy et al. 2020, arXiv:2004.05150; Child et al. 2019, arXiv:1904.10509.
    """

    window: int | None
    dilation: int

    def _check(self) -> None:
        if self.window is not None:
            _set_count(self, "window", minimum=1)
        _set_count(self, "dilation", minimum=1)

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        on_grid = (i - j) % self.dilation == 0
        return on_grid if self.window is None else on_grid & (np.abs(i - j) < min(self.window * self.dilation, _LIMIT))


@dataclass(frozen=True, repr=False)
class Strided(Term):
    """Columns at a fixed distance: j % stride == offset.

    Args:
        stride: Distance between neighbouring columns; at least 1.
        offset: Position of the first column; below stride.
        rows: "all": every query sees the columns (the Sparse Transformer's fixed pattern). "strided": only queries
            on the same grid, i % stride == offset, do.

    Source: Child et al. 2019, arXiv:1904.10509.
    """

    stride: int
    offset: int = 0
    rows: str = "all"

    def _check(self) -> None:
        _set_count(self, "stride", minimum=1)
        _set_count(self, "offset", minimum=0)
        if self.offset >= self.stride:
            raise ValueError(f"Strided: offset must be below stride {self.stride}, got {self.offset}")
        if self.rows not in ("all", "strided"):
            raise ValueError(f"Strided: rows must be 'all' or 'strided', got {self.rows!r}")

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        column = (j % self.stride == self.offset) & (i >= 0)
        return column if self.rows == "all" else column & (i % self.stride == self.offset)


@dataclass(frozen=True, repr=False)
class Sinks(Term):
    """The first n keys of the document: j < n.

    Source: Xiao et al. 2023, arXiv:2309.17453.
    """

    n: int

    def _check(self) -> None:
        _set_count(self, "n", minimum=1)

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        return (j < self.n) & (i >= 0)


@dataclass(frozen=True, repr=False, init=False)
class Global(Term):
    """Keys that all queries see, at positions from which queries see all keys: j in positions or i in positions.

    Args:
        positions: Non-negative positions, counted in the document; those beyond its end are ignored. A list of lists
            gives one list per batch example, or per packed document.

    Source: Beltagy et al. 2020, arXiv:2004.05150; Zaheer et al. 2020, arXiv:2007.14062.
    """

    positions: tuple[int, ...] | tuple[tuple[int, ...], ...]

    def __init__(self, positions: Iterable[int] | Iterable[Iterable[int]]) -> None:
        given: Any = positions.tolist() if hasattr(positions, "tolist") else positions
        if not isinstance(given, Iterable) or isinstance(given, str):
            raise ValueError(f"Global: positions must be a list of positions, or one list per example, got {given!r}")
        given = list(given)
        nested = [isinstance(item, Iterable) and not isinstance(item, str) for item in given]
        if any(nested) and not all(nested):
            raise ValueError(f"Global: positions mixes numbers and lists: {given!r}")
        chosen = tuple(_position_set(item) for item in given) if any(nested) else _position_set(given)
        object.__setattr__(self, "positions", chosen)
        self._name(self._spelled())

    @property
    def examples(self) -> int | None:
        return len(self.positions) if self.positions and isinstance(self.positions[0], tuple) else None

    def example(self, index: int) -> Global:
        return self if self.examples is None else Global(self.positions[index])  # type: ignore[arg-type]

    @property
    def shared(self) -> tuple[int, ...]:
        """The sorted positions, where they are the same for all examples."""
        if self.examples is not None:
            raise ValueError(
                f"pattern: {self!r} lists positions for {self.examples} examples: choose one with pattern.example(b), "
                "or pass cu_seqlens with as many documents"
            )
        return self.positions  # type: ignore[return-value]

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        return np.isin(i, self.shared) | np.isin(j, self.shared)


@dataclass(frozen=True, repr=False)
class Random(Term):
    """BigBird's random blocks: each query block sees `blocks` key blocks, drawn without replacement.

    Query block b = i // block draws from key blocks 0 .. b-1 (causal) or from all ceil(S / block) blocks. With n
    blocks to draw from and k = min(blocks, n), draw r = 0 .. k-1 (Floyd's algorithm) takes
    x = hash(seed, b, r) % (n - k + r + 1), or n - k + r if an earlier draw took x. All arithmetic is modulo 2^64:
    hash(seed, b, r) = mix(mix(mix(seed + G) + b + G) + r + G), G = 0x9E3779B97F4A7C15, where mix is SplitMix64's
    finaliser (``_mix``). A causal choice hangs on (seed, b, r) alone: it stays the same as the sequence grows.

    Source: Zaheer et al. 2020, arXiv:2007.14062; Steele et al. 2014 (SplitMix64).
    """

    blocks: int
    seed: int = 0
    block: int = 64

    def _check(self) -> None:
        _set_count(self, "blocks", minimum=1)
        _set_count(self, "seed", minimum=0)
        if self.seed >= 1 << 64:
            raise ValueError(f"Random: seed must be below 2**64, got {self.seed}")
        _set_count(self, "block", minimum=1)

    def draw(self, query_block: int, n_blocks: int) -> list[int]:
        """The key blocks that one query block draws from blocks 0 .. n_blocks - 1."""
        chosen: list[int] = []
        for last in range(max(n_blocks - self.blocks, 0), n_blocks):
            draw = _mix(_mix(_mix(self.seed + _GOLDEN) + query_block + _GOLDEN) + len(chosen) + _GOLDEN) % (last + 1)
            chosen.append(last if draw in chosen else draw)
        return chosen

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        keep = np.zeros(np.broadcast_shapes(i.shape, j.shape), dtype=bool)
        for b in np.unique(i // self.block).tolist():
            drawn = self.draw(b, b if causal else -(-n_keys // self.block))
            keep |= (i // self.block == b) & np.isin(j // self.block, drawn)
        return keep


class Summaries(Term):
    """Terms of learned summary keys, which are given to `attention` as extra_k and extra_v.

    A query at position i sees the `extra_keys` keys of row i // block, made from the blocks wholly before its own. They are
    no keys of the sequence, so these terms add nothing to `mask` and `pairs`.
    """

    block: int

    def keeps(self, i: Positions, j: Positions, n_keys: int, causal: bool) -> NDArray[np.bool_]:
        return np.zeros(np.broadcast_shapes(i.shape, j.shape), dtype=bool)


@dataclass(frozen=True, repr=False)
class Anchors(Summaries):
    """Learned summary keys: every query sees r extra keys, each a weighted mean of all blocks wholly before its own.

    The keys themselves are given to `attention`, or made by `nn.SparseSelfAttention`; see `Summaries`.

    Args:
        r: Summary keys that each query sees.
        block: Tokens that one more row of summaries covers.
    """

    r: int = 64
    block: int = 128

    def _check(self) -> None:
        _set_count(self, "r", minimum=1)
        _set_count(self, "block", minimum=1)

    @property
    def extra_keys(self) -> int:
        return self.r


@dataclass(frozen=True, repr=False)
class AnchorTree(Summaries):
    """Summaries of summaries: fine ones of what is near, coarse ones of what is far; levels * fanout * r extra keys.

    A node of level 0 holds r summaries of one block, a node of level l those of `fanout` nodes of level l - 1. The n blocks
    before a query's are covered by 1 to `fanout` nodes of each level, the finest nearest: with e_0 = n, level l shows nodes
    fanout * e_{l+1} .. e_l, where e_{l+1} = (e_l - 1) // fanout. The coarsest level shows its last `fanout` nodes: what lies
    beyond `horizon` is not seen. Slots without a node hold a learned null key.

    Args:
        levels: At least 1; ceil(log_fanout(T / block)) see everything.
        fanout: Nodes that one coarser node summarises; at least 2.
        r: Summaries of a node.
        block: Tokens of a node of level 0.

    Flat `Anchors` spend their keys on the whole past alike; a tree spends them by distance, and its reach grows with
    fanout ** levels. With ``Chunked(size)`` it is hierarchical attention: each chunk in full, and summaries of those before.
    Source: hierarchical summaries in one softmax: Zhu and Soricut 2021, arXiv:2107.11906.
    """

    levels: int
    fanout: int = 4
    r: int = 4
    block: int = 128

    def _check(self) -> None:
        for name, minimum in (("levels", 1), ("fanout", 1), ("r", 1), ("block", 1)):
            _set_count(self, name, minimum=minimum)
        if self.fanout < 2:
            raise ValueError(f"AnchorTree: fanout must be at least 2, got {self.fanout}")

    @property
    def extra_keys(self) -> int:
        return self.levels * self.fanout * self.r

    @property
    def horizon(self) -> int:
        """Tokens before a query's own block that its summaries can tell of at most; 2**62, past every position, at most."""
        blocks = 0
        for _ in range(self.levels):
            blocks = self.fanout * (blocks + 1)
            if blocks * self.block >= _LIMIT:
                return _LIMIT
        return blocks * self.block

    @property
    def sees_any_length(self) -> bool:
        """Whether the horizon lies past every position."""
        return self.horizon >= _LIMIT

    def shown(self, n_blocks: int) -> list[range]:
        """The nodes of each level, counted from the document's start, that a query behind n_blocks blocks sees.

        >>> AnchorTree(3, fanout=2).shown(6)  # blocks 4 and 5; 2 and 3 in one; nothing coarser than 0 and 1 in one
        [range(4, 6), range(0, 2), range(0, 0)]
        """
        found, end = [], n_blocks
        for level in range(self.levels):
            coarser = max(end - 1, 0) // self.fanout
            start = self.fanout * coarser if level + 1 < self.levels else max(0, end - self.fanout)
            found.append(range(start, end))
            end = coarser
        return found


_LIMIT = 1 << 62  # position arithmetic stays inside int64
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def _mix(x: int) -> int:
    x &= _WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)


def _whole(value: object) -> int | None:
    """The value as an int if it is a whole number (numpy's count, booleans do not)."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _set_count(term: Term, name: str, minimum: int) -> None:
    given = getattr(term, name)
    value = _whole(given)
    if value is None or value < minimum:
        kind = "a positive integer" if minimum == 1 else "a non-negative integer"
        raise ValueError(f"{type(term).__name__}: {name} must be {kind}, got {given!r}")
    if value >= _LIMIT and name != "seed":
        raise ValueError(f"{type(term).__name__}: {name} must be below 2**62, got {value}")
    object.__setattr__(term, name, value)


def _position_set(given: Iterable[object]) -> tuple[int, ...]:
    positions = [_whole(item) for item in given]
    if any(p is None or p < 0 for p in positions):
        raise ValueError(f"Global: positions must be non-negative integers, got {list(given)!r}")
    if any(p is not None and p >= _LIMIT for p in positions):
        raise ValueError(f"Global: positions must be below 2**62, got {list(given)!r}")
    return tuple(sorted({p for p in positions if p is not None}))
