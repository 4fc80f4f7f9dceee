"""What would make a model fit, ranked: what costs least first, and what is enough before what is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..patterns import Sinks, Window
from .dtypes import KV_BITS, kv_bits
from .fit import Remedy, _Asked
from .records import Layer, Memory, Model
from .tensor_parallel import allowed_splits
from .weights import weights_cost

_SINKS = 4
_WINDOWS = (32768, 16384, 8192, 4096, 2048, 1024)
_WEIGHTS = ("fp8", "int8", "int4")


def remedies(asked: _Asked, context: int) -> tuple[Remedy, ...]:
    """Single changes first: KV dtype, weight dtype, more GPUs, a sparse pattern, a smaller request; then a pair.

    Those that are enough stand before those that are not, each in this order, which is that of what is lost.
    """
    found = [
        *_kv(asked, context),
        *_weights(asked, context),
        *_more_gpus(asked, context),
        *_patterns(asked, context),
        *_smaller(asked, context),
    ]
    if not any(one.fits and one.change in ("kv", "weights") for one in found):
        found[2:2] = list(_both(asked, context))
    return tuple(sorted(found, key=lambda one: not one.fits))


def _result(asked: _Asked, context: int, change: str, value: str, price: str) -> Remedy:
    required = asked.required(context)
    longest = asked.max_context(asked.workspace().total_bytes)
    return Remedy(change, value, required, required <= asked.available, longest, price)


def _kv(asked: _Asked, context: int) -> Iterator[Remedy]:
    smaller = [kv for kv in ("fp8", "int4") if KV_BITS[kv] < kv_bits(asked.kv)]
    if not any(memory.precision == "kv" for layer in asked.model.layers for memory in layer.memory):
        return
    prices = {
        "fp8": "half the cache; little is lost on most models, measure it on yours",
        "int4": "a quarter of the cache; recall over long contexts may suffer, measure it",
    }
    for kv in smaller:
        yield _result(replace(asked, kv=kv), context, "kv", kv, prices[kv])


def _weights(asked: _Asked, context: int) -> Iterator[Remedy]:
    now = weights_cost(asked.model, asked.weights).total_bytes
    prices = {
        "fp8": "weights in 8 bits",
        "int8": "weights in 8 bits",
        "int4": "weights in 4 bits: some quality, measure it",
    }
    seen = set()
    for dtype in _WEIGHTS:
        size = weights_cost(asked.model, dtype).total_bytes
        bits = prices[dtype]
        if size >= 0.95 * now or bits in seen:
            continue
        if dtype == "fp8" and asked.gpu.fp8 is None:
            continue
        seen.add(bits)
        yield _result(replace(asked, weights=dtype), context, "weights", dtype, bits)


def _both(asked: _Asked, context: int) -> Iterator[Remedy]:
    first = "fp8" if asked.gpu.fp8 is not None else "int8"
    for weights in (first, "int4"):
        for kv in ("fp8", "int4"):
            both = _result(
                replace(asked, weights=weights, kv=kv),
                context,
                "kv and weights",
                f"{kv} and {weights}",
                "both of the above",
            )
            if both.fits:
                yield both
                return


def _more_gpus(asked: _Asked, context: int) -> Iterator[Remedy]:
    more = [count for count in allowed_splits(asked.model) if count > asked.gpus]
    for count in more:
        one = _result(replace(asked, gpus=count), context, "gpus", str(count), _split_price(asked.model, count))
        if one.fits or count == more[-1]:
            yield one
            return


def _split_price(model: Model, count: int) -> str:
    kept = sorted({layer.kv_heads for layer in model.layers if layer.kv_heads})
    if kept and count > kept[0]:
        return f"{count} cards; KV heads ({kept[0]}) are copied {count // kept[0]} times, so the cache shrinks {kept[0]}-fold only"
    return f"{count} cards, heads shared out evenly"


def _patterns(asked: _Asked, context: int) -> Iterator[Remedy]:
    """The widest window on the layers that see everything, every fourth of them left alone, that fits."""
    seeing = [layer.index for layer in asked.model.layers if layer.kind == "full" and layer.memory]
    if len(seeing) < 2:
        return
    kept = set(seeing[3::4])
    last = None
    for window in _WINDOWS:
        if window + _SINKS >= context:
            continue
        for stay, words in (
            (kept, f"every 4th of the {len(seeing)} full layers stays full"),
            (set[int](), "no layer stays full"),
        ):
            cut = replace(asked, model=cut_to_window(asked.model, set(seeing) - stay, window))
            pattern = Window(window) | Sinks(_SINKS)
            hops = asked.model.layers and -(-(context - 1) // (window - 1))
            reach = len(seeing) * (window - 1) + 1
            price = (
                f"{words}; the others see the last {window:,} tokens and the first {_SINKS}, so a fact further back is "
                + (
                    "theirs through the full layers only"
                    if stay
                    else f"{hops:,} hops away, and the stack reaches {reach:,} tokens"
                )
                + "; the model was not trained for it"
            )
            last = _result(cut, context, "pattern", repr(pattern), price)
            if last.fits:
                yield last
                return
    if last is not None:
        yield last


def cut_to_window(model: Model, layers: set[int], window: int, sinks: int = _SINKS) -> Model:
    """The model with these layers cut to a window and the first `sinks` tokens."""

    def cut(memory: Memory) -> Memory:
        return replace(memory, limit=window + sinks, ring="window") if memory.grows else memory

    def change(layer: Layer) -> Layer:
        if layer.index not in layers:
            return layer
        scores = tuple(
            replace(score, rule="window", size=window + sinks) if score.rule == "full" else score
            for score in layer.scores
        )
        return replace(
            layer, kind="sliding", window=window, memory=tuple(cut(memory) for memory in layer.memory), scores=scores
        )

    return replace(model, layers=tuple(change(layer) for layer in model.layers))


def _smaller(asked: _Asked, context: int) -> Iterator[Remedy]:
    longest = asked.max_context(asked.workspace().total_bytes)
    if longest:
        yield _result(asked, longest, "context", f"{longest}", f"{context - longest:,} tokens less")
    many = asked.max_batch(context)
    if many:
        yield _result(
            replace(asked, batch=many), context, "batch", f"{many}", f"{asked.batch - many} sequences less at a time"
        )
