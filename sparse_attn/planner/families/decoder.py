"""The decoder that most families are: grouped-query attention and an MLP in each layer.

A family's entry says what each layer sees (`Span`), how its attention is built (`Shape`), and what its MLP is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..blocks import attention, build_layer, gated_mlp, moe, plain_mlp
from ..fields import Fields
from ..records import Inert, Layer, Weights
from .stack import Heads, Stack, hidden_size, layer_count, read_heads, read_layer_types, read_window


@dataclass(frozen=True)
class Span:
    """What one layer sees: everything, the last `window` keys, or its chunk; and the field that says so."""

    source: str
    window: int | None = None
    chunk: int | None = None
    rope: str = "rope"


@dataclass(frozen=True)
class Shape:
    """How attention is built.

    Attributes:
        qkv_bias, out_bias: Biases of the projections.
        qk_norm: Norms of queries and keys: "head" (one of each, over the head dim), "pair" (the same with biases), "all"
            (over all heads together), "each" (one a head), or none.
        norms: Norms of a layer, each of hidden_size numbers.
        gated: The query projection is twice as wide (an output gate).
        sinks: One learned number a head beside the keys.
    """

    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "all", "each", "pair", ""] = ""
    norms: int = 2
    gated: bool = False
    sinks: bool = False

    def extra(self, heads: Heads, hidden: int) -> int:
        """Numbers beside the projections' matrices."""
        biases = (heads.both + heads.queries * heads.dim * self.gated) * self.qkv_bias
        norms = {
            "head": 2 * heads.dim,
            "all": (heads.queries + heads.keys) * heads.dim,
            "each": (heads.queries + heads.keys) * heads.dim,
            "pair": 4 * heads.dim,
            "": 0,
        }[self.qk_norm]
        return biases + hidden * self.out_bias + norms + heads.queries * self.sinks


def decoder(
    f: Fields,
    spans: Sequence[Span],
    shape: Shape,
    feed: Callable[[int], Sequence[Weights]],
    *,
    heads: Heads | None = None,
    final_norm: int = 1,
    extra: Sequence[Weights] = (),
    inert: Sequence[Inert] = (),
    notes: Sequence[str] = (),
) -> Stack:
    """One layer for each span; `feed(index)` gives its MLP."""
    heads = heads or read_heads(f)
    hidden = hidden_size(f)
    layers = tuple(_layer(index, span, shape, heads, hidden, feed(index)) for index, span in enumerate(spans))
    return Stack(layers, widest(f), extra=tuple(extra), final_norm=final_norm, inert=tuple(inert), notes=tuple(notes))


def _layer(index: int, span: Span, shape: Shape, heads: Heads, hidden: int, feed: Sequence[Weights]) -> Layer:
    mixer = attention(
        hidden,
        heads.queries,
        heads.keys,
        heads.dim,
        window=span.window,
        chunk=span.chunk,
        extra=shape.extra(heads, hidden),
        gate=heads.queries * heads.dim * shape.gated,
    )
    return build_layer(index, mixer, feed, norms=shape.norms * hidden, source=span.source, rope=span.rope)


def widest(f: Fields) -> int:
    """Width of the MLP that one token passes: the dense one's, or all chosen experts' together."""
    dense = f.maybe_whole("intermediate_size") or 4 * hidden_size(f)
    chosen = f.maybe_whole("num_experts_per_tok", least=0) or 0
    each = f.maybe_whole("moe_intermediate_size") or 0
    return max(dense, chosen * each) if each else dense * max(1, chosen)


# --- what layers see -------------------------------------------------------------------------------------------------


def all_full(f: Fields, source: str = "model_type") -> list[Span]:
    """Every layer sees everything."""
    return [Span(source)] * layer_count(f)


def one_window(f: Fields) -> list[Span]:
    """`sliding_window` W on every layer; null: all full (Mistral, Mixtral, Phi-3)."""
    window = read_window(f)
    return [Span("sliding_window", window=window)] * layer_count(f)


def by_layer_types(f: Fields, window: int | None, otherwise: Callable[[int], bool], source: str) -> list[Span]:
    """`layer_types` if given; else `otherwise(index)` says which layers slide, for the reason in `source`."""
    types = read_layer_types(f, ("full_attention", "sliding_attention"))
    spans = []
    for index in range(layer_count(f)):
        slides = types[index] == "sliding_attention" if types else otherwise(index)
        where = f"layer_types[{index}]" if types else source
        if slides and window is None:
            raise f.fail(f"{where} makes layer {index} a sliding one, but sliding_window is missing")
        spans.append(Span(where, window=window if slides else None))
    return spans


# --- what layers do with each token ----------------------------------------------------------------------------------


def same_mlp(f: Fields, *, bias: bool | None = None, gated: bool = True) -> Callable[[int], Sequence[Weights]]:
    """The same MLP of width `intermediate_size` in every layer; `mlp_bias`."""
    with_bias = f.flag("mlp_bias") if bias is None else bias
    build = gated_mlp if gated else plain_mlp
    parts = build(hidden_size(f), f.whole("intermediate_size"), bias=with_bias)
    return lambda index: parts


def experts(f: Fields, width: str = "moe_intermediate_size", **more: int | bool) -> Sequence[Weights]:
    """Routed experts: `num_experts` of `width`, of which a token passes `num_experts_per_tok`."""
    count = f.whole("num_experts", "num_local_experts", "n_routed_experts")
    chosen = f.whole("num_experts_per_tok", "top_k_experts", "moe_topk")
    if chosen > count:
        raise f.fail(f"num_experts_per_tok {chosen} is more than the {count} experts")
    return moe(hidden_size(f), f.whole(width), count, chosen, **more)  # type: ignore[arg-type]
