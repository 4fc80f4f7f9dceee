"""What would make a model fit, ranked: what costs least first, and what is enough before what is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..patterns import Sinks, Window
from .dtypes import KV_BITS, kv_bits
from .patterned import with_pattern
from .question import Question
from .records import Model
from .tensor_parallel import allowed_splits
from .weights import weights_cost

_SINKS = 4
_WINDOWS = (32768, 16384, 8192, 4096, 2048, 1024)
_WEIGHTS = ("fp8", "int8", "int4")


@dataclass(frozen=True)
class Remedy:
    """One change that lowers the bill, and what it costs.

    Attributes:
        change: "kv", "weights", "gpus", "pattern", "context", "batch" or "kv and weights".
        value: What to set: "fp8", "int4", "2", a pattern's text, a number of tokens or sequences.
        required_bytes: What each GPU then needs.
        fits: Whether that is enough.
        max_context: The largest context then; None: no bound.
        price: What is given up, one sentence.
    """

    change: str
    value: str
    required_bytes: int
    fits: bool
    max_context: int | None
    price: str


def remedies(asked: Question, context: int) -> tuple[Remedy, ...]:
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


def _result(asked: Question, context: int, change: str, value: str, price: str) -> Remedy:
    required = asked.required(context)
    longest = asked.max_context(asked.workspace().total_bytes)
    return Remedy(change, value, required, required <= asked.available, longest, price)


def _kv(asked: Question, context: int) -> Iterator[Remedy]:
    smaller = [kv for kv in ("fp8", "int4") if KV_BITS[kv] < kv_bits(asked.kv)]
    if not any(memory.precision == "kv" for layer in asked.model.layers for memory in layer.memory):
        return
    prices = {
        "fp8": "half the cache; little is lost on most models, measure it on yours",
        "int4": "a quarter of the cache; recall over long contexts may suffer, measure it",
    }
    for kv in smaller:
        yield _result(replace(asked, kv=kv), context, "kv", kv, prices[kv])


def _weights(asked: Question, context: int) -> Iterator[Remedy]:
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


def _both(asked: Question, context: int) -> Iterator[Remedy]:
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


def _more_gpus(asked: Question, context: int) -> Iterator[Remedy]:
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


def _patterns(asked: Question, context: int) -> Iterator[Remedy]:
    """The widest window on the full layers that fits: first with every fourth of them left alone, then on all."""
    full = [layer.index for layer in asked.model.layers if layer.kind == "full" and layer.memory]
    if len(full) < 2:
        return
    last = None
    for stay in (full[3::4], []):
        for window in _WINDOWS:
            if window + _SINKS >= context or (stay and len(full) < 4):
                continue
            pattern = Window(window) | Sinks(_SINKS)
            cut = [index for index in full if index not in stay]
            changed = replace(asked, model=with_pattern(asked.model, pattern, layers=cut))
            last = _result(changed, context, "pattern", repr(pattern), _reach_lost(window, len(cut), stay, context))
            if last.fits:
                yield last
                return
    if last is not None:
        yield last


def _reach_lost(window: int, cut: int, stay: list[int], context: int) -> str:
    """What a window and sinks on `cut` layers give up."""
    reach = Window(window).reach(cut).tokens or 0
    sees = f"the last {window:,} tokens and the first {_SINKS}"
    if stay:
        named = ", ".join(map(str, stay[:6])) + (", ..." if len(stay) > 6 else "")
        return (
            f"{cut} full layers see {sees} only; {len(stay)} stay full ({named}) and carry what lies further back; "
            "the model was not trained for it, so measure it"
        )
    if reach >= context:
        hops = -(-(context - 1) // (window - 1))
        return (
            f"all {cut} full layers see {sees}: the first token of {context:,} is {hops:,} hops away (reach {reach:,}), "
            "and exact recall from afar is lost; the model was not trained for it"
        )
    return (
        f"all {cut} full layers see {sees}: nothing further back than {reach:,} tokens reaches the last token "
        f"of {context:,} through them; the model was not trained for it"
    )


def _smaller(asked: Question, context: int) -> Iterator[Remedy]:
    longest = asked.max_context(asked.workspace().total_bytes)
    if longest:
        yield _result(asked, longest, "context", f"{longest}", f"{context - longest:,} tokens less")
    many = asked.max_batch(context)
    if many:
        yield _result(
            replace(asked, batch=many), context, "batch", f"{many}", f"{asked.batch - many} sequences less at a time"
        )
