"""A model under a sparse pattern: what its full layers keep and compute if they attend through one of our patterns."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..patterns import Anchors, AnchorTree, Chunked, Full, Global, Pattern, Sinks, Strided, Window
from .records import Kind, Layer, Memory, Model, Scores


def with_pattern(model: Model, pattern: Pattern, *, layers: Collection[int] | None = None) -> Model:
    """The model with `layers` (default: all full ones) attending through `pattern`.

    Kept for each sequence: a window its last `left` keys, sinks and globals the named ones, a chunk at most its size,
    strided columns one key a stride, anchors r summaries (the newest row serves every later query). Terms whose keys
    may come back at any time (dilated, random) keep everything. Pairs of several terms are added up: keys that two terms
    name count twice, so the FLOPs are an upper bound; window | sinks is exact.

    Raises:
        ValueError: a layer that is not there or has no full attention.
    """
    full = {layer.index for layer in model.layers if layer.kind == "full"}
    chosen = full if layers is None else set(layers)
    wrong = sorted(chosen - full)
    if wrong:
        raise ValueError(f"layers must name layers with full attention ({len(full)} here), got {wrong[0]}")
    cut = tuple(_cut(layer, pattern) if layer.index in chosen else layer for layer in model.layers)
    return replace(model, layers=cut)


def _cut(layer: Layer, pattern: Pattern) -> Layer:
    terms = pattern.terms
    if any(isinstance(term, Full) or not isinstance(term, _BOUNDED) for term in terms):
        return layer
    memory = tuple(part for one in layer.memory for part in _kept(one, pattern))
    per_pair = sum(score.flops for score in layer.scores if score.rule == "full")
    scores = tuple(score for score in layer.scores if score.rule != "full")
    windows = [term.left for term in terms if isinstance(term, Window)]
    chunks = [term.size for term in terms if isinstance(term, Chunked)]
    kind: Kind = "chunked" if chunks and not windows else "sliding"
    return replace(
        layer,
        kind=kind,
        window=max((*windows, *chunks), default=1),
        memory=memory,
        scores=scores + tuple(_scores(per_pair, pattern)),
        note=f"under {pattern!r}",
    )


_BOUNDED = (Window, Sinks, Chunked, Anchors, AnchorTree, Global, Strided)


def _kept(one: Memory, pattern: Pattern) -> list[Memory]:
    """What stays of one term of the cache: a ring of window and sinks together, and parts of their own for the rest."""
    if not one.grows or one.every != 1:
        return [one]
    parts = []
    ring = max((term.left for term in pattern.terms if isinstance(term, Window)), default=0)
    chunk = max((term.size for term in pattern.terms if isinstance(term, Chunked)), default=0)
    fixed = _fixed(pattern)
    if ring or fixed:
        parts.append(replace(one, limit=ring + fixed, ring="window"))
    if chunk:
        parts.append(replace(one, name=f"{one.name} of the chunk", limit=chunk, ring="chunk"))
    for term in pattern.terms:
        if isinstance(term, Strided):
            parts.append(replace(one, name=f"{one.name} of columns", every=term.stride))
        if isinstance(term, Anchors):
            parts.append(replace(one, name=f"{one.name} of anchors", elements=one.elements * term.r, per_token=False))
        if isinstance(term, AnchorTree):
            kept = (term.fanout + 1) * term.levels * term.r
            parts.append(replace(one, name=f"{one.name} of anchors", elements=one.elements * kept, per_token=False))
    return parts


def _fixed(pattern: Pattern) -> int:
    """Keys at named positions: sinks and globals."""
    sinks = max((term.n for term in pattern.terms if isinstance(term, Sinks)), default=0)
    named = {
        position
        for term in pattern.terms
        if isinstance(term, Global)
        for position in term.positions
        if isinstance(position, int) and position >= sinks
    }
    return sinks + len(named)


def _scores(flops: int, pattern: Pattern) -> list[Scores]:
    found = []
    ring = max((term.left for term in pattern.terms if isinstance(term, Window)), default=0)
    if ring + _fixed(pattern):
        found.append(Scores("attention", flops, "window", ring + _fixed(pattern)))
    for term in pattern.terms:
        if isinstance(term, Chunked):
            found.append(Scores("attention", flops, "chunk", term.size))
        if isinstance(term, Strided):
            found.append(Scores("attention", flops, "summaries", term.stride))
        if isinstance(term, Anchors | AnchorTree):
            found.append(Scores("attention", flops * term.extra_keys, "token"))
    return found
