"""Bytes of a model's weights in a format: what a quantiser packs, and what it leaves in 16 bits.

Quantisers pack the matrices of linear layers inside the stack; embedding, head, router, norms, biases and convolutions
stay in the checkpoint's own format. GGUF files pack embedding and head too, and keep norms and routers in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from .dtypes import GGUF_BLOCKS, GGUF_MIXES, PACKED_BITS, PLAIN_BITS, weight_format
from .records import Model, Weights

_SPARED_BY = {  # what a name in modules_to_not_convert means in our parts
    "attention": ("self_attn", "attn", "attention"),
    "recurrence": ("mamba", "linear_attn", "mixer", "ssm"),
    "experts": ("experts",),
    "shared experts": ("shared_expert",),
    "mlp": (".mlp.", "mlp\\."),
}


@dataclass(frozen=True)
class WeightsCost:
    """Bytes of the weights, in all and by part.

    Attributes:
        dtype: The format that was counted, e.g. "bf16", "int4", "Q4_K_M".
        total_bytes: All parts together.
        parts: (part, parameters, bytes), in the order of the stack.
        source: "counted", or where a measured size came from.
        exact: False for llama.cpp's mixes, whose choice of types depends on the model.
        spared: Parts that the checkpoint's own quantisation leaves alone.
    """

    dtype: str
    total_bytes: int
    parts: tuple[tuple[str, int, int], ...]
    source: str = "counted"
    exact: bool = True
    spared: tuple[str, ...] = ()


def weights_cost(model: Model, dtype: str | None = None) -> WeightsCost:
    """Bytes of the weights in `dtype`; None: as the checkpoint stores them.

    Per part: parameters x bits / 8, with a packed format's scales in its bits. If the checkpoint is itself in that
    format, the parts that it spares are spared; if its files' sizes are known, None gives their sum.

    Raises:
        ValueError: an unknown format.

    >>> from sparse_attn.planner import describe
    >>> small = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    >>> small = describe({**small, "intermediate_size": 128, "vocab_size": 100})
    >>> weights_cost(small).total_bytes == 2 * small.parameters.total
    True
    """
    own = model.quantization
    stored = own.weights if own else model.dtype
    chosen = weight_format(dtype) if dtype is not None else weight_format(stored)
    spared = _spared(own.spared) if own and own.weights == chosen else ()
    lines: dict[str, list[Fraction | int]] = {}
    for part in model.all_weights:
        bits = _bits(part, chosen, model, spared)
        line = lines.setdefault(part.part, [0, Fraction(0)])
        line[0] += part.total
        line[1] += part.total * bits
    parts = tuple((name, int(line[0]), -(-int(line[1]) // 8)) for name, line in lines.items())
    total = sum(size for _, _, size in parts)
    if dtype is None and model.stored_bytes is not None:
        return WeightsCost(chosen, model.stored_bytes, parts, "the weight files", True, spared)
    return WeightsCost(chosen, total, parts, "counted", chosen not in GGUF_MIXES, spared)


def weights_bytes(model: Model, dtype: str | None = None) -> int:
    """`weights_cost(...).total_bytes`."""
    return weights_cost(model, dtype).total_bytes


def active_bytes(model: Model, dtype: str | None = None, tokens: int = 1) -> int:
    """Bytes of weights that a step over `tokens` tokens reads.

    Routed experts: a fraction 1 - (1 - k / E)^tokens of them is expected to be hit, if tokens choose evenly and
    independently. Embedding rows that are looked up are not counted; a tied table is, as the head.
    """
    own = model.quantization
    chosen = weight_format(dtype) if dtype is not None else weight_format(own.weights if own else model.dtype)
    spared = _spared(own.spared) if own and own.weights == chosen else ()
    total = 0.0
    for part in model.all_weights:
        if part.part == "embedding" and not part.computes:
            continue
        share = 1.0 if part.active == part.total else 1 - (1 - part.active / part.total) ** tokens
        total += share * part.total * float(_bits(part, chosen, model, spared)) / 8
    return int(total)


def _bits(part: Weights, chosen: str, model: Model, spared: tuple[str, ...]) -> Fraction:
    if chosen in PLAIN_BITS:
        return Fraction(PLAIN_BITS[chosen])
    own = Fraction(PLAIN_BITS.get(model.dtype, 16))
    if chosen in PACKED_BITS:
        own = min(own, Fraction(16))  # what is not packed is served in 16 bits
        stored = model.quantization
        packed = stored.bits if stored and stored.bits and stored.weights == chosen else PACKED_BITS[chosen]
        return packed if part.linear and part.part not in spared else own
    if part.part in ("norms", "router") or not (part.linear or part.part in ("embedding", "head")):
        return Fraction(32)
    if chosen in GGUF_MIXES:
        return Fraction(GGUF_MIXES[chosen]).limit_denominator(10_000)
    size, weights = GGUF_BLOCKS[chosen]
    return Fraction(8 * size, weights)


def _spared(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        part for part, words in _SPARED_BY.items() if any(_names(part, word, name) for word in words for name in names)
    )


def _names(part: str, word: str, name: str) -> bool:
    """Whether a module's name (or pattern) stands for a part in every layer."""
    router = any(known in name for known in ("router", "gate")) and "_proj" not in name
    shared = "shared" in name and part != "shared experts"
    return word in name and not router and not shared and _in_every_layer(name)


def _in_every_layer(name: str) -> bool:
    """Whether a name is meant for all layers: `model.layers.*.self_attn` is, `model.layers.3.self_attn` is not."""
    return not any(piece.isdigit() for piece in name.split("."))
