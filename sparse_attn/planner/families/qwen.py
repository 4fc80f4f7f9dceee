"""Qwen2, Qwen2-MoE, Qwen2.5, Qwen3, Qwen3-MoE. The three rules for sliding layers differ, and one has none."""

from __future__ import annotations

from collections.abc import Callable

from ..blocks import gated_mlp
from ..fields import Fields
from ..records import Inert, Weights
from .decoder import Shape, Span, all_full, by_layer_types, decoder, experts, same_mlp
from .stack import Stack, hidden_size, layer_count, read_window

_SLIDING_FIELDS = ("max_window_layers", "sliding_window")


def qwen2(f: Fields) -> Stack:
    """Layers slide if `use_sliding_window` and index >= `max_window_layers`. Biases on queries, keys and values."""
    spans, inert = upper_window(f)
    return decoder(f, spans, Shape(qkv_bias=True), same_mlp(f, bias=False), inert=inert)


def qwen3(f: Fields) -> Stack:
    """Sliding layers as in Qwen2; norms of queries and keys over the head dim."""
    spans, inert = upper_window(f)
    bias = f.flag("attention_bias")
    shape = Shape(qkv_bias=bias, out_bias=bias, qk_norm="head")
    return decoder(f, spans, shape, same_mlp(f, bias=False), inert=inert)


def qwen2_moe(f: Fields) -> Stack:
    """Even layers below `max_window_layers` slide if `use_sliding_window`: the other side of Qwen2's rule."""
    used = f.flag("use_sliding_window")
    below = f.whole("max_window_layers", least=0)
    window = read_window(f) if used else None
    spans = by_layer_types(
        f,
        window,
        lambda index: used and (index + 1) % 2 == 1 and index < below,
        "use_sliding_window, max_window_layers",
    )
    shared = f.whole("shared_expert_intermediate_size", least=0)
    feed = sparse_feed(f, shared=shared, shared_gate=True)
    inert = [] if used else unused(f, "use_sliding_window is false")
    return decoder(f, spans, Shape(qkv_bias=f.flag("qkv_bias", default=True)), feed, inert=inert)


def qwen3_moe(f: Fields) -> Stack:
    """All layers slide if `use_sliding_window`, else all are full; no field chooses among layers."""
    used = f.flag("use_sliding_window")
    window = read_window(f) if used else None
    spans = [Span("sliding_window", window=window)] * layer_count(f) if window else all_full(f, "use_sliding_window")
    bias = f.flag("attention_bias")
    inert = []
    if f.given("max_window_layers"):
        inert.append(
            Inert(
                "max_window_layers",
                str(f.config["max_window_layers"]),
                "Qwen3-MoE's class never reads it, so it makes no layer slide, whatever its value",
                "configuration_qwen3_moe.py",
            )
        )
    if not used and f.given("sliding_window"):
        inert += [one for one in unused(f, "use_sliding_window is false") if one.field == "sliding_window"]
    return decoder(f, spans, Shape(qkv_bias=bias, out_bias=bias, qk_norm="head"), sparse_feed(f), inert=inert)


def upper_window(f: Fields) -> tuple[list[Span], list[Inert]]:
    """The rule of Qwen2 and Qwen3, and the fields that it leaves without effect."""
    used = f.flag("use_sliding_window")
    window = read_window(f) if used else None
    first = f.whole("max_window_layers", least=0)
    spans = by_layer_types(
        f, window, lambda index: window is not None and index >= first, "use_sliding_window, max_window_layers"
    )
    inert = [] if used else unused(f, "use_sliding_window is false")
    if used and not any(span.window for span in spans):
        inert = unused(f, f"max_window_layers {first} is not below num_hidden_layers {layer_count(f)}: no layer slides")
    return spans, inert


def sparse_feed(f: Fields, *, shared: int = 0, shared_gate: bool = False) -> Callable[[int], tuple[Weights, ...]]:
    """Experts in every `decoder_sparse_step`-th layer outside `mlp_only_layers`; a dense MLP in the others."""
    step = f.whole("decoder_sparse_step")
    dense = set(f.listed("mlp_only_layers") or ())
    count = f.whole("num_experts", "num_local_experts", least=0)
    routed = experts(f, shared=shared, shared_gate=shared_gate) if count else ()
    plain = gated_mlp(hidden_size(f), f.whole("intermediate_size"))

    def feed(index: int) -> tuple[Weights, ...]:
        sparse = count and index not in dense and (index + 1) % step == 0
        return tuple(routed) if sparse else plain

    return feed


def unused(f: Fields, why: str) -> list[Inert]:
    """`max_window_layers` and `sliding_window`, where a switch leaves them without effect."""
    return [
        Inert(name, str(f.config[name]), f"{why}, so it does nothing", f"configuration_{f.family}.py")
        for name in _SLIDING_FIELDS
        if f.given(name)
    ]
