"""Llama 4, gpt-oss, GLM-4.5, MiniMax M1 and M2, MiMo: mixtures of experts with windows, chunks or recurrences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..blocks import attention, build_layer, gated_mlp, moe
from ..fields import Fields
from ..records import Inert, Weights
from ..recurrences import lightning_attention
from .decoder import Shape, Span, all_full, by_layer_types, decoder, experts, same_mlp, widest
from .deepseek import sparse_after
from .stack import Stack, hidden_size, layer_count, read_heads, read_layer_types, read_window


def llama4(f: Fields) -> Stack:
    """`layer_types`; without it the layers with RoPE (`no_rope_layers`, 1 is RoPE) attend in chunks, the others fully.

    An empty `no_rope_layers` is the default: every `no_rope_layer_interval`-th layer without RoPE.
    """
    count, every = layer_count(f), f.whole("no_rope_layer_interval", default=4)
    listed = f.value("no_rope_layers")
    rope = f.listed("no_rope_layers", length=count) if listed else None
    rope = rope or [int((index + 1) % every != 0) for index in range(count)]
    types = read_layer_types(f, ("chunked_attention", "full_attention", "sliding_attention"))
    chunk = f.maybe_whole("attention_chunk_size")
    spans = []
    for index in range(count):
        kind = types[index] if types else "chunked_attention" if rope[index] else "full_attention"
        where = f"layer_types[{index}]" if types else "no_rope_layers"
        if kind == "chunked_attention" and chunk is None:
            raise f.fail(f"{where} makes layer {index} a chunked one, but attention_chunk_size is missing")
        spans.append(
            Span(where, chunk=chunk if kind == "chunked_attention" else None, rope="rope" if rope[index] else "none")
        )
    step = f.whole("interleave_moe_layer_step", default=1)
    sparse = f.listed("moe_layers")
    sparse = list(range(step - 1, count, step)) if sparse is None else sparse
    inside = f.whole("intermediate_size")
    routed = experts(f, "intermediate_size", shared=inside)
    dense = gated_mlp(hidden_size(f), f.whole("intermediate_size_mlp"))
    bias = f.flag("attention_bias")
    shape = Shape(qkv_bias=bias, out_bias=bias)
    stack = decoder(f, spans, shape, lambda index: routed if index in sparse else dense)
    width = max(inside * (1 + f.whole("num_experts_per_tok")), f.whole("intermediate_size_mlp"))
    return replace(stack, width=width)


def gpt_oss(f: Fields) -> Stack:
    """`layer_types`; without it layers 0, 2, 4, ... slide. Biases, sinks, experts with biases, a router with a bias."""
    hidden, width, count = hidden_size(f), f.whole("intermediate_size"), f.whole("num_local_experts", "num_experts")
    chosen = f.whole("num_experts_per_tok", "experts_per_token")
    parts = moe(hidden, width, count, chosen, expert_bias=2 * width + hidden, router_bias=count)
    spans = by_layer_types(f, read_window(f), lambda index: index % 2 == 0, "class default: every second layer full")
    bias = f.flag("attention_bias")
    return decoder(f, spans, Shape(qkv_bias=bias, out_bias=bias, sinks=True), lambda index: parts)


def glm4_moe(f: Fields) -> Stack:
    """GLM-4.5, 4.6: all full; the first `first_k_dense_replace` layers dense; norms of queries and keys by `use_qk_norm`."""
    shape = Shape(qkv_bias=f.flag("attention_bias"), qk_norm="head" if f.flag("use_qk_norm") else "")
    return decoder(f, all_full(f), shape, sparse_after(f))


def minimax_m2(f: Fields) -> Stack:
    """M2: all full (MHA with grouped queries, no lightning layers), norms of queries and keys over all heads."""
    parts = experts(f, "intermediate_size")
    inert = []
    if f.given("attn_type_list"):
        inert.append(
            Inert(
                "attn_type_list", "given", "M2's class has full attention in every layer", "configuration_minimax_m2.py"
            )
        )
    return decoder(f, all_full(f), Shape(qk_norm="all"), lambda index: parts, inert=inert)


def minimax(f: Fields) -> Stack:
    """MiniMax-Text-01, M1: `layer_types`, or `attn_type_list` (1: full, 0: lightning); else every other layer full.

    The lightning layers keep one matrix a head.
    """
    hidden, heads, count = hidden_size(f), read_heads(f), layer_count(f)
    types = read_layer_types(f, ("full_attention", "linear_attention"))
    listed = f.listed("attn_type_list", length=count)
    if types is None and listed is not None:
        types = ["full_attention" if one else "linear_attention" for one in listed]
    where = (
        "layer_types" if f.given("layer_types") else "attn_type_list" if listed else "class default: every second layer"
    )
    types = types or ["linear_attention" if index % 2 else "full_attention" for index in range(count)]
    linear = lightning_attention(hidden, heads.queries, heads.dim)
    full = attention(hidden, heads.queries, heads.keys, heads.dim)
    parts = experts(f, "intermediate_size")
    layers = tuple(
        build_layer(index, full if kind == "full_attention" else linear, parts, norms=2 * hidden, source=where)
        for index, kind in enumerate(types)
    )
    return Stack(layers, widest(f))


def mimo_v2(f: Fields) -> Stack:
    """MiMo-V2-Flash: `layer_types`, or `hybrid_layer_pattern` (1: sliding); else layer 0 and every 6th full.

    Sliding layers have twice the KV heads (or `swa_num_key_value_heads`) and sinks; `sliding_window_size` counts
    earlier tokens, so the window is one more. `add_swa_attention_sink_bias` does not change what is kept.
    """
    hidden, heads, count = hidden_size(f), read_heads(f), layer_count(f)
    types = read_layer_types(f, ("full_attention", "sliding_attention"))
    listed = f.listed("hybrid_layer_pattern", length=count)
    source = "class default: layer 0 and every 6th full"
    if types is None and listed is not None:
        types, source = ["sliding_attention" if one else "full_attention" for one in listed], "hybrid_layer_pattern"
    types = types or [
        "full_attention" if index == 0 or (index + 1) % 6 == 0 else "sliding_attention" for index in range(count)
    ]
    size = f.maybe_whole("sliding_window_size")
    window = size + 1 if size is not None else f.whole("sliding_window")
    value = f.whole("v_head_dim")
    bias = f.flag("attention_bias")
    local = f.maybe_whole("swa_num_key_value_heads") or 2 * heads.keys
    mixers = {}
    for kind, keys, span in (("full_attention", heads.keys, None), ("sliding_attention", local, window)):
        extra = (heads.queries * heads.dim + keys * (heads.dim + value)) * bias + (heads.queries if span else 0)
        mixers[kind] = attention(hidden, heads.queries, keys, heads.dim, value_dim=value, window=span, extra=extra)
    feed = _mimo_feed(f)
    layers = tuple(
        build_layer(
            index,
            mixers[kind],
            feed(index),
            norms=2 * hidden,
            source=f"layer_types[{index}]" if f.given("layer_types") else source,
            rope="partial rope",
        )
        for index, kind in enumerate(types)
    )
    return Stack(layers, widest(f))


def _mimo_feed(f: Fields) -> Callable[[int], Sequence[Weights]]:
    types = f.listed("mlp_layer_types", length=layer_count(f))
    sparse = f.listed("moe_layer_freq", length=layer_count(f)) if isinstance(f.value("moe_layer_freq"), list) else None
    routed, dense = experts(f), gated_mlp(hidden_size(f), f.whole("intermediate_size"))

    def feed(index: int) -> Sequence[Weights]:
        if types:
            return routed if types[index] == "sparse" else dense
        if sparse:
            return routed if sparse[index] else dense
        return routed if index else dense

    return feed


def mimo(f: Fields) -> Stack:
    """MiMo-7B: a Qwen2 with all layers full in practice; its layers follow Qwen2's rule, extra heads are not counted."""
    from .qwen import upper_window

    spans, inert = upper_window(f) if f.given("max_window_layers") else (all_full(f), [])
    notes = (
        ["the checkpoint's layers for multi-token prediction are not counted here"]
        if f.given("num_nextn_predict_layers")
        else []
    )
    return decoder(
        f,
        spans,
        Shape(qkv_bias=f.flag("attention_bias", default=True)),
        same_mlp(f, bias=False),
        inert=inert,
        notes=notes,
    )
