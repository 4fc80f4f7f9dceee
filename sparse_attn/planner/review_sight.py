"""Rules about what layers see, and how far information travels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from .finding import Finding, Reviewed
from .sight import hops

_RANKS = ("zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_RETRIEVAL = (
    "Wu et al. 2024, arXiv:2404.15574 (retrieval from afar is done by few heads that attend across the whole context)"
)
_STACKED = (
    "reach: Jiang et al. 2023, arXiv:2310.06825, section 2; "
    "what arrives of it: G. Xiao 2025, guangxuanx.com/blog/stacking-swa.html"
)
_HYBRID = "Yang et al. 2025, arXiv:2501.18795 (windows interleaved with full layers); Gemma 3 report, arXiv:2503.19786"


def all_full(r: Reviewed) -> Iterator[Finding]:
    """Every mixing layer sees everything."""
    if r.sight.mixing and len(r.sight.everything) == len(r.sight.mixing):
        grows = "" if r.sight.wide else ", and the KV cache of each of them grows with the context"
        yield Finding(
            "all-layers-full",
            "info",
            f"{_every(len(r.sight.mixing))} sees every earlier token: nothing is out of sight{grows}",
            _fields(r, r.sight.everything),
        )


def full_layers(r: Reviewed) -> Iterator[Finding]:
    """Some, but not all, see everything: which, and how regularly."""
    seen = r.sight
    if not seen.everything or len(seen.everything) == len(seen.mixing):
        return
    run = seen.longest_run
    step = _interval(seen.everything)
    regular = step is not None and run is not None and run.length < step and len(seen.everything) > 1
    tail = seen.layers - 1 - seen.everything[-1]
    top = "up to the top" if tail == 0 else f"up to layer {seen.highest}, {tail} below the top"
    if regular:
        yield Finding(
            "full-layers-regular", "info",
            f"full attention at every {_ordinal(step or 0)} layer {top}: {len(seen.everything)} of {len(seen.mixing)} "
            f"layers see everything ({seen.share:.0%}), from layer {seen.lowest} on; at most {run.length if run else 0} in a "
            "row do not",
            _HYBRID,
        )  # fmt: skip
        return
    at = f"; the longest run without one is layers {run.first} to {run.last} ({run.length} layers)" if run else ""
    yield Finding(
        "full-layers-some",
        "info",
        f"{len(seen.everything)} of {len(seen.mixing)} layers see everything ({seen.share:.0%}), the lowest is layer "
        f"{seen.lowest}, the highest layer {seen.highest} of {seen.layers - 1}{at}",
        _fields(r, seen.everything),
    )


def local_top(r: Reviewed) -> Iterator[Finding]:
    """The top of the stack has no layer that sees everything, and it is more than the pattern's own rest."""
    seen = r.sight
    if seen.highest is None:
        return
    tail = range(seen.highest + 1, seen.layers)
    mixing = [index for index in tail if index in seen.mixing]
    step = _interval(seen.everything)
    if not mixing or len(tail) * 5 < seen.layers or (step is not None and len(tail) < step):
        return
    yield Finding(
        "top-layers-local",
        "warning",
        f"the top {len(tail)} of {seen.layers} layers {_sees(r, mixing)}: distant facts cannot be combined there",
        _RETRIEVAL,
    )


def long_run(r: Reviewed) -> Iterator[Finding]:
    """Half of the stack or more without a layer that sees everything, below the top."""
    run = r.sight.longest_run
    if run is None or not r.sight.everything or run.last == r.sight.layers - 1 or 2 * run.length < r.sight.layers:
        return
    indexes = [index for index in r.sight.mixing if run.first <= index <= run.last]
    yield Finding(
        "long-run-without-full",
        "warning",
        f"layers {run.first} to {run.last}, {run.length} of {r.sight.layers} in a row, {_sees(r, indexes)}",
        _RETRIEVAL,
    )


def window_only(r: Reviewed) -> Iterator[Finding]:
    """Windows or chunks and nothing else: recall past them goes from layer to layer."""
    seen = r.sight
    if seen.reach is None or seen.recurrent or not seen.bounded or not seen.exact:
        return
    layers = [r.model.layers[index] for index in seen.bounded]
    chunks = all(layer.kind == "chunked" for layer in layers)
    name = "chunk-only" if chunks else "window-only"
    same = len({(layer.kind, layer.window) for layer in layers}) == 1 and not chunks
    formula = f" ({len(layers)} layers x ({seen.exact:,} - 1) + 1)" if same else ""
    says = _over_hops(r, seen.exact) if same and seen.context else f"a query sees at most {seen.exact:,} tokens itself"
    if chunks and len({layer.window for layer in layers}) == 1:
        says += ", and nothing crosses a chunk's border: all layers cut at the same places"
    yield Finding(
        name, "warning", f"{name} model: {says}. The stack's reach is {seen.reach:,} tokens{formula}", _STACKED
    )
    if seen.context and seen.reach < seen.context:
        yield Finding(
            "reach-below-context",
            "warning",
            f"the reach of {seen.reach:,} tokens is {seen.reach / seen.context:.1%} of the {_name(r)} context of "
            f"{seen.context:,}: what stands further back cannot influence the answer at all",
            _STACKED,
        )


def _over_hops(r: Reviewed, window: int) -> str:
    """Through how many layers exact recall goes at the context, all layers having the same window."""
    context, layers = r.sight.context or 0, len(r.sight.bounded)
    needed, whole = hops(context, window), (context - 1) // (window - 1) if window > 1 else 0
    says = f"exact recall past {window:,} tokens goes "
    if window == 1 or needed > layers:
        return f"{says}from layer to layer, and {layers} layers are too few for {context:,} tokens"
    if needed == whole or whole < 2:
        return f"{says}through {needed} hops at {context:,} tokens"
    far = whole * (window - 1) + 1
    return f"{says}through {whole} hops, which bring {far:,} tokens to a query; all of {context:,} take {needed}"


SIGHT_RULES = (window_only, local_top, long_run, all_full, full_layers)


def _sees(r: Reviewed, indexes: list[int]) -> str:
    """What the named layers see instead of everything, as a verb and its object."""
    layers = [r.model.layers[index] for index in indexes]
    widths = [layer.window for layer in layers if layer.window]
    if all(layer.kind == "sliding" for layer in layers):
        return f"see only the last {max(widths):,} tokens"
    if all(layer.kind == "chunked" for layer in layers):
        return f"see only their chunk of {max(widths):,} tokens"
    if all(layer.kind == "linear" for layer in layers):
        return "keep the past in a state of fixed size only"
    most = f" or at most {max(widths):,} tokens" if widths else ""
    return f"see a state of fixed size{most}"


def _interval(indexes: tuple[int, ...]) -> int | None:
    """The step between the indexes if it is always the same."""
    steps = {after - before for before, after in pairwise(indexes)}
    return steps.pop() if len(steps) == 1 else None


def _fields(r: Reviewed, indexes: tuple[int, ...]) -> str:
    fields = dict.fromkeys(r.model.layers[index].source.partition("[")[0] for index in indexes)
    return f"field {', '.join(fields)}, as transformers' class for {r.model.family} reads it"


def _name(r: Reviewed) -> str:
    return "advertised" if r.context == r.model.advertised_context else "asked"


def _every(count: int) -> str:
    return f"each of the {count} layers" if count > 1 else "the only layer"


def _ordinal(number: int) -> str:
    """A number as a rank: "fourth", "12th"."""
    if number < len(_RANKS):
        return _RANKS[number]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 // 10 != 1 else "th"
    return f"{number}{ending}"
