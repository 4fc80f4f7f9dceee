"""How far information travels through a stack of layers that all attend through one pattern.

A token's information moves one hop a layer, from a key to every query that sees it. The set of positions that one
token's information has reached is a string of bits, and each term moves it by a few shifts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pattern import Pattern, Within
from .terms import Anchors, AnchorTree, Chunked, Dilated, Full, Global, Strided, Term, Window

_PERIOD_LIMIT = 1 << 20  # starting positions of a repeating pattern that are followed for `tokens`
_FAR = 1 << 61  # positions that chunks are followed to: twice as far is still inside int64
_WORK_LIMIT = 1 << 28  # starting positions, times layers, times words of bits, followed for `layers_to_any`


@dataclass(frozen=True)
class Reach:
    """What a stack of layers can carry, in a sequence of any length.

    Attributes:
        layers: Layers in the stack.
        tokens: The farthest that information travels to a query, in tokens and its own included: a window of W keys
            reaches layers * (W - 1) + 1. Exact for windows, chunks, dilated windows and their unions; an upper bound
            where columns or random blocks are cut by `within`, or chunks share no period of some million tokens. None:
            without limit, through keys seen from any distance (sinks among them, which carry only what stands at their own
            position; and trees of anchors whose horizon lies past every position).
        layers_to_any: Layers after which any key has reached any query (any later one, if causal), however long the
            sequence, far from its ends; None if no number of layers does for all lengths. Keys at fixed positions
            (causal sinks and globals) and random blocks guarantee nothing and do not count, nor do anchor trees that
            end somewhere. Also None where the terms'
            common period is so long (some 10,000 positions) that following it would take more than seconds.
    """

    layers: int
    tokens: int | None
    layers_to_any: int | None


def compute_reach(pattern: Pattern, layers: int, causal: bool) -> Reach:
    """See `Pattern.reach`."""
    if isinstance(layers, bool) or not isinstance(layers, int | np.integer) or layers < 1:
        raise ValueError(f"layers must be a positive integer, got {layers!r}")
    return Reach(int(layers), _farthest(pattern, int(layers), causal), _layers_to_any(pattern, causal))


def _split(clause: Term | Within) -> tuple[Term, int | None, int | None]:
    """The term, and the keys before and after the query that `within` leaves it (None: all)."""
    if isinstance(clause, Within):
        return clause.term, clause.limit.left - 1, clause.limit.ahead
    return clause, None, None


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _farthest(pattern: Pattern, layers: int, causal: bool) -> int | None:
    """Greedy: a query's farthest key is never before an earlier query's, so the farthest hop is always the best."""
    spans: list[tuple[int, int]] = []  # hops back and ahead that do not hang on the position
    chunks: list[tuple[int, int, int]] = []
    for clause in pattern.terms:
        term, back, ahead = _split(clause)
        match term:
            case Window():
                span = (_least(term.left - 1, back), _least(term.ahead, ahead))
            case Dilated():
                span = (_dilated_hop(term, back), _dilated_hop(term, ahead))
            case AnchorTree():
                span = (None if term.sees_any_length else term.horizon + term.block - 1, 0)
            case Chunked():
                chunks.append((term.size, _or(back, term.size), _or(ahead, term.size)))
                continue
            case _:
                span = (back, ahead)
        if span[0] is None or span[1] is None:
            return None
        spans.append((span[0], span[1]))
    most_back = max((back for back, _ in spans), default=0)
    most_ahead = max((ahead for _, ahead in spans), default=0)
    period = math.lcm(*(size for size, _, _ in chunks))
    if period > _PERIOD_LIMIT or layers * period > _FAR:  # too many places to follow: the longest hop every time
        return layers * max(most_back, most_ahead, *(size - 1 for size, _, _ in chunks)) + 1
    back = _travel(most_back, chunks, layers, period, ahead=False)
    return (back if causal else max(back, _travel(most_ahead, chunks, layers, period, ahead=True))) + 1


def _travel(hop: int, chunks: list[tuple[int, int, int]], layers: int, period: int, ahead: bool) -> int:
    """The farthest way in one direction, from the best place to start from.

    Where a plain hop is as long as any within a chunk, chunks add nothing; any other hop is shorter than a period, so that
    positions stay far inside int64.
    """
    if hop >= max((size - 1 for size, _, _ in chunks), default=0):
        return layers * hop
    start = np.arange(period, dtype=np.int64)
    end = _chunk_ends(start, chunks, ahead)
    once = np.maximum(end - start, hop) if ahead else np.maximum(start - end, hop)
    way = np.zeros_like(start)
    while layers:  # a way of 2n layers is one of n, and another from where that one ends
        if layers % 2:
            way = way + once[(start + way if ahead else start - way) % period]
        once = once + once[(start + once if ahead else start - once) % period]
        layers //= 2
    return int(way.max())


def _dilated_hop(term: Dilated, bound: int | None) -> int | None:
    hop = _least(None if term.window is None else (term.window - 1) * term.dilation, bound)
    return None if hop is None else hop // term.dilation * term.dilation


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _chunk_ends(at: NDArray[np.int64], chunks: list[tuple[int, int, int]], ahead: bool) -> NDArray[np.int64]:
    """The farthest key of each position's chunks, in one direction."""
    end = at
    for size, back, forth in chunks:
        start = at // size * size
        end = (
            np.maximum(end, np.minimum(start + size - 1, at + forth))
            if ahead
            else np.minimum(end, np.maximum(start, at - back))
        )
    return end


def _layers_to_any(pattern: Pattern, causal: bool) -> int | None:
    """Follow one token's information from every place of a period until it has reached every place.

    The stretch that is followed is too long for bounded hops alone to cover it in the layers that are tried, so that
    what covers it covers a sequence of any length.
    """
    clauses = [_split(clause) for clause in pattern.terms]
    clauses = [(_as_anchors(term), back, ahead) for term, back, ahead in clauses]
    unlimited = [term for term, back, ahead in clauses if back is None and not _is_bounded(term)]
    if not causal and any(isinstance(term, Global) and term.positions for term in unlimited):
        return 1 if any(isinstance(term, Full) for term in unlimited) else 2
    if any(isinstance(term, Full) for term in unlimited):
        return 1
    if not any(isinstance(term, Strided | Dilated | Anchors) for term in unlimited):
        return None
    period = math.lcm(*(_term_period(term) for term, _, _ in clauses))
    stretch = period + max((term.dilation for term in unlimited if isinstance(term, Dilated)), default=0)
    # A hop over several periods meets whatever one over a few of them meets: long windows need no long line.
    clauses = [
        (term, _least(back, 4 * stretch), _least(ahead, 4 * stretch)) if _is_bounded(term) else (term, back, ahead)
        for term, back, ahead in clauses
    ]
    hop = max([_hop(term, back, ahead) for term, back, ahead in clauses], default=0)
    most_layers = 3 + 2 * -(-stretch // max(hop, 1))  # crawl to a grid, jump along it, and crawl from it
    side = (most_layers + 1) * hop + 2 * stretch
    base = 0 if causal else -(-side // period) * period
    if period * most_layers * -(-(base + period + side) // 64) > _WORK_LIMIT:
        return None
    line = _Line(base + period + side, causal)
    return _slowest(line, clauses, range(base, base + period), most_layers)


def _as_anchors(term: Term) -> Term:
    """A tree that sees any length brings what anchors of its block bring: something of all blocks before."""
    return Anchors(block=term.block) if isinstance(term, AnchorTree) and term.sees_any_length else term


def _slowest(
    line: _Line, clauses: list[tuple[Term, int | None, int | None]], starts: range, most_layers: int
) -> int | None:
    slowest = 0
    for start in starts:
        wanted = line.everything >> start << start if line.causal else line.everything
        reached = 1 << start
        for layer in range(1, most_layers + 1):
            before = reached
            for term, back, ahead in clauses:
                reached |= line.spread(before, term, back, ahead)
            if reached & wanted == wanted:
                slowest = max(slowest, layer)
                break
        else:
            return None
    return slowest


def _is_bounded(term: Term) -> bool:
    return isinstance(term, Window | Chunked | AnchorTree) or (isinstance(term, Dilated) and term.window is not None)


def _hop(term: Term, back: int | None, ahead: int | None) -> int:
    """Upper bound of one hop through a term whose hops are bounded; 0 for others."""
    match term:
        case Window():
            return max(_or(_least(term.left - 1, back), 0), _or(_least(term.ahead, ahead), 0))
        case Chunked():
            return term.size - 1
        case Dilated(window=int()):
            return max(_or(_dilated_hop(term, back), 0), _or(_dilated_hop(term, ahead), 0))
        case _:
            return 0 if back is None or ahead is None else max(back, ahead)


def _term_period(term: Term) -> int:
    match term:
        case Chunked():
            return term.size
        case Strided():
            return term.stride
        case Anchors():
            return term.block
        case _:
            return 1


class _Line:
    """Positions 0 .. n - 1 as the bits of an integer, and how a set of keys spreads to the queries that see them."""

    def __init__(self, n: int, causal: bool) -> None:
        self.n = n
        self.causal = causal
        self.everything = (1 << n) - 1

    def spread(self, keys: int, term: Term, back: int | None, ahead: int | None) -> int:
        """The queries that see any of the keys through a term, cut to hops of `back` and `ahead`."""
        match term:
            case Window():
                return self._slide(keys, _or(_least(term.left - 1, back), 0), _or(_least(term.ahead, ahead), 0), 1)
            case Full():
                return self._slide(keys, _or(back, self.n), _or(ahead, self.n), 1)
            case Dilated():
                span = self.n if term.window is None else (term.window - 1) * term.dilation
                return self._slide(keys, _or(_least(span, back), 0), _or(_least(span, ahead), 0), term.dilation)
            case Chunked():
                near = self._slide(keys, _or(back, term.size), _or(ahead, term.size), 1)
                return near & self._own_chunks(keys, term.size)
            case Strided():
                grid = self._grid(term.offset, term.stride)
                seen = self._slide(keys & grid, _or(back, self.n), _or(ahead, self.n), 1)
                return seen if term.rows == "all" else seen & grid
            case Anchors():
                first = (keys & -keys).bit_length() - 1
                return self.everything >> (start := (first // term.block + 1) * term.block) << start
            case _:
                return 0

    def _slide(self, keys: int, back: int, ahead: int, step: int) -> int:
        """Every key's position moved up by 0 .. back and down by 0 .. ahead, in steps."""
        up = self._smear(keys, back // step, step, up=True)
        return up if self.causal else up | self._smear(keys, ahead // step, step, up=False)

    def _smear(self, keys: int, times: int, step: int, up: bool) -> int:
        done = 0  # keys already moved by 0 .. done steps: each round doubles it
        times = min(times, self.n // step + 1)
        while done < times:
            more = min(done + 1, times - done)
            keys = (keys | keys << more * step) & self.everything if up else keys | keys >> more * step
            done += more
        return keys

    def _grid(self, offset: int, stride: int) -> int:
        return self._smear(1 << offset, self.n // stride + 1, stride, up=True)

    def _own_chunks(self, keys: int, size: int) -> int:
        chunk = (1 << size) - 1
        filled = 0
        for start in range(0, self.n, size):
            own = keys >> start & chunk
            if own:
                filled |= (chunk >> (low := (own & -own).bit_length() - 1) << low if self.causal else chunk) << start
        return filled & self.everything
