"""A model under a sparse pattern: what its full layers keep and compute if they attend through one of our patterns.

A pattern is taken apart once (`_Extent`): what follows the query, what stands still, what may come from anywhere. Memory and
scores are then sums over these parts. What terms that choose or learn cost beside attention, `chosen_cost.py` says.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ..patterns import Anchors, AnchorTree, Chunked, Dilated, Full, Global, Pattern, Random, Sinks, Strided, Window
from ..patterns.chosen import ChosenBlocks, split_choice
from ..patterns.covering import Covering
from ..patterns.hashed import Hashed
from ..patterns.pattern import Within
from ..patterns.refusals import check_union
from ..patterns.terms import Term
from .chosen_cost import kept_of_blocks, kept_of_summaries, work_of
from .records import Kind, Layer, Memory, Model, Scores


def with_pattern(model: Model, pattern: Pattern, *, layers: Collection[int] | None = None) -> Model:
    """The model with `layers` (default: all full ones) attending through `pattern`.

    Kept for each sequence: a window its last `left` keys, a dilated one those that it spans, sinks and globals the named
    ones, a chunk at most its size, strided columns one key a stride. Anchors keep a state of constant size (float32; the r
    summary keys are read off it) and the tokens of the open block; a tree its last nodes and that block. Where keys may come
    back at any time (`TopBlocks`, `CoverBlocks`, `VerticalSlash`, `Hashed`, random blocks, dilations without end) all are
    kept; `TopBlocks` keeps one compressed key a block besides, and reads for a new token those and what it chose.

    Pairs: those of `Pattern.pairs` for unions of window, sinks and one term that chooses (its bound: k * block, or rounds * 2
    * chunk keys a query); of other unions at least as many, since several terms are added up: keys that two terms name count
    twice, a term that `within` cuts counts as that window, and the whole rows of global positions are left out. What choosing
    costs is counted beside: scores of blocks, hashes, the estimates of `CoverBlocks` and `VerticalSlash`, which may keep all
    pairs and choose in prefill only: their layers are priced as full ones, and that.

    Raises:
        ValueError: a layer that is not there or has no full attention; terms that cannot stand together.
    """
    check_union(pattern)
    full = {layer.index for layer in model.layers if layer.kind == "full"}
    chosen = full if layers is None else set(layers)
    wrong = sorted(chosen - full)
    if wrong:
        raise ValueError(f"layers must name layers with full attention ({len(full)} here), got {wrong[0]}")
    cut = tuple(_cut(layer, pattern) if layer.index in chosen else layer for layer in model.layers)
    return replace(model, layers=cut)


@dataclass(frozen=True)
class _Extent:
    """What a pattern's terms hold, of each kind together.

    Attributes:
        ring: Last keys that are kept.
        near: Last keys that a query sees: a dilated window sees fewer than it spans.
        fixed: Keys at named positions.
        chunk: The longest chunk.
        free: Keys from anywhere that a query sees at most: chosen, hashed or drawn.
        strides: Tokens that one key stands for, of columns and of dilations without end.
        whole: Whether all keys are kept.
    """

    ring: int
    near: int
    fixed: int
    chunk: int
    free: int
    strides: tuple[int, ...]
    whole: bool

    @property
    def bounded(self) -> int:
        """Keys that a query sees at most, but for chunks and strides."""
        return self.near + self.fixed + self.free


def _extent(terms: list[Term]) -> _Extent:
    windows = [term.left for term in terms if isinstance(term, Window)]
    dilated = [term for term in terms if isinstance(term, Dilated)]
    spans = [(term.window - 1) * term.dilation + 1 for term in dilated if term.window is not None]
    free = [term.blocks * term.block for term in terms if isinstance(term, Random)]
    free += [term.budget or 0 for term in terms if isinstance(term, ChosenBlocks | Hashed)]
    return _Extent(
        ring=max((*windows, *spans), default=0),
        near=max(windows, default=0) + sum(term.window for term in dilated if term.window is not None),
        fixed=_fixed(terms),
        chunk=max((term.size for term in terms if isinstance(term, Chunked)), default=0),
        free=sum(free),
        strides=tuple(
            term.stride if isinstance(term, Strided) else term.dilation
            for term in terms
            if isinstance(term, Strided) or (isinstance(term, Dilated) and term.window is None)
        ),
        whole=bool(free) or any(isinstance(term, Dilated) and term.window is None for term in terms),
    )


def _fixed(terms: list[Term]) -> int:
    """Keys at named positions: sinks and globals."""
    sinks = max((term.n for term in terms if isinstance(term, Sinks)), default=0)
    named = {
        position
        for term in terms
        if isinstance(term, Global)
        for position in term.positions
        if isinstance(position, int) and position >= sinks
    }
    return sinks + len(named)


def _cut(layer: Layer, pattern: Pattern) -> Layer:
    terms = [_uncut(clause) for clause in pattern.terms]
    if any(isinstance(term, Full) for term in terms):
        return layer
    note = f"under {pattern!r}"
    work = tuple(score for term in terms for score in work_of(term, layer))
    if any(isinstance(term, Covering) for term in terms):
        return replace(layer, scores=(*layer.scores, *work), note=f"{note}: in prefill at most all pairs, then all")
    held = _extent(terms)
    per_pair = sum(score.flops for score in layer.scores if score.rule == "full")
    others = tuple(score for score in layer.scores if score.rule != "full")
    kind: Kind = "indexed" if held.whole else "chunked" if held.chunk and not held.ring else "sliding"
    return replace(
        layer,
        kind=kind,
        window=held.bounded + held.chunk if held.whole else max(held.ring, held.chunk, 1),
        memory=_memory(layer, pattern, terms, held),
        scores=(*others, *_scores(per_pair, held, terms), *work),
        note=note,
    )


def _uncut(clause: Term | Within) -> Term:
    """A term; one that is cut to a window counts as the window, which it cannot exceed; but what chooses still keeps all."""
    if not isinstance(clause, Within):
        return clause
    return clause.term if isinstance(clause.term, ChosenBlocks | Hashed) else clause.limit


def _memory(layer: Layer, pattern: Pattern, terms: list[Term], held: _Extent) -> tuple[Memory, ...]:
    """What stays of each part of the cache that grows; what does not grow stays as it is."""
    growing = [one for one in layer.memory if one.grows and one.every == 1]
    kept = [part for one in layer.memory for part in (_kept(one, terms, held) if one in growing else [one])]
    choice = split_choice(pattern)
    if choice is not None:
        kept += kept_of_blocks(growing, choice.term)
    for term in terms:
        if isinstance(term, Anchors | AnchorTree):
            kept += kept_of_summaries(growing, term, layer.kv_heads)
    return tuple(kept)


def _kept(one: Memory, terms: list[Term], held: _Extent) -> list[Memory]:
    """All of one term of the cache; or a ring of window and sinks together, and parts of their own for the rest."""
    if held.whole:
        # Hashes are made anew from all keys, columns and dilations are read besides: no bound is claimed there.
        reads_all = bool(held.strides) or any(isinstance(term, Hashed) for term in terms)
        return [one if reads_all else replace(one, read=held.bounded + held.chunk)]
    parts = []
    if held.ring or held.fixed:
        parts.append(replace(one, limit=held.ring + held.fixed, ring="window"))
    if held.chunk:
        parts.append(replace(one, name=f"{one.name} of the chunk", limit=held.chunk, ring="chunk"))
    parts += [replace(one, name=f"{one.name} of columns", every=stride) for stride in held.strides]
    return parts


def _scores(flops: int, held: _Extent, terms: list[Term]) -> list[Scores]:
    found = []
    if held.bounded:
        found.append(Scores("attention", flops, "top" if held.whole else "window", held.bounded))
    if held.chunk:
        found.append(Scores("attention", flops, "chunk", held.chunk))
    found += [Scores("attention", flops, "summaries", stride) for stride in held.strides]
    extra = sum(term.extra_keys for term in terms)
    extra += sum(isinstance(term, Dilated) and term.window is None for term in terms)  # the query's own key
    if extra:
        found.append(Scores("attention", flops * extra, "token"))
    return found
