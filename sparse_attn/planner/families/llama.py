"""Llama 2 and 3, Mistral, Mixtral, Phi, SmolLM3, Olmo, Command R, Granite, GLM-4 and others of that shape."""

from __future__ import annotations

from ..blocks import small
from ..fields import Fields
from ..records import Inert
from .decoder import Shape, Span, all_full, by_layer_types, decoder, experts, one_window, same_mlp
from .stack import Heads, Stack, hidden_size, layer_count, read_heads, read_window


def llama(f: Fields) -> Stack:
    """All layers full. `attention_bias` biases all four projections, `mlp_bias` the MLP's."""
    bias = f.flag("attention_bias")
    return decoder(f, all_full(f), Shape(qkv_bias=bias, out_bias=bias), same_mlp(f), inert=unused_window(f, "Llama"))


def assumed_full(f: Fields) -> Stack:
    """Whatever it is: every layer full, the projections and the gated MLP of a Llama (`assume="full"`)."""
    return decoder(f, all_full(f, "assumed"), Shape(), same_mlp(f))


def mistral(f: Fields) -> Stack:
    """`sliding_window` on every layer, null: none. `layer_types` is not read (MistralConfig warns about it)."""
    inert = []
    if f.given("layer_types"):
        inert.append(
            Inert("layer_types", "given", "Mistral's class takes one window for all layers", "configuration_mistral.py")
        )
    return decoder(f, one_window(f), Shape(), same_mlp(f, bias=False), inert=inert)


def ministral(f: Fields) -> Stack:
    """`layer_types`; without it every layer slides where `sliding_window` is given."""
    window = read_window(f)
    spans = by_layer_types(f, window, lambda index: window is not None, "sliding_window")
    return decoder(f, spans, Shape(), same_mlp(f, bias=False))


def mixtral(f: Fields) -> Stack:
    """`sliding_window` on every layer; `num_local_experts` experts of `intermediate_size`."""
    parts = experts(f, "intermediate_size")
    return decoder(f, one_window(f), Shape(), lambda index: parts)


def phi3(f: Fields) -> Stack:
    """Phi-3, Phi-3.5-mini, Phi-4: `sliding_window` on every layer."""
    return decoder(f, one_window(f), Shape(), same_mlp(f, bias=False))


def phimoe(f: Fields) -> Stack:
    """Phi-3.5-MoE: `sliding_window` on every layer, biases everywhere, LayerNorm."""
    bias = f.flag("attention_bias")
    parts = experts(f, "intermediate_size")
    shape = Shape(qkv_bias=bias, out_bias=bias, norms=4)
    head = small("head", f.whole("vocab_size") * f.flag("lm_head_bias"))
    return decoder(f, one_window(f), shape, lambda index: parts, final_norm=2, extra=head)


def phi(f: Fields) -> Stack:
    """Phi-1, 1.5, 2: all full, one LayerNorm before attention and a plain MLP in parallel, biases everywhere, the head's too."""
    return decoder(
        f,
        all_full(f),
        Shape(qkv_bias=True, out_bias=True, qk_norm="pair" if f.flag("qk_layernorm") else ""),
        same_mlp(f, bias=True, gated=False),
        final_norm=2,
        extra=small("head", f.whole("vocab_size")),
    )


def smollm3(f: Fields) -> Stack:
    """NoPE on every `no_rope_layer_interval`-th layer; those slide if `use_sliding_window` and `sliding_window`."""
    count, every = layer_count(f), f.whole("no_rope_layer_interval")
    rope = f.listed("no_rope_layers", length=count) or [int((index + 1) % every != 0) for index in range(count)]
    window = read_window(f) if f.flag("use_sliding_window") else None
    spans = [
        Span(span.source, window=span.window, rope="rope" if rope[index] else "none")
        for index, span in enumerate(
            by_layer_types(f, window, lambda index: window is not None and not rope[index], "use_sliding_window")
        )
    ]
    bias = f.flag("attention_bias")
    inert = []
    if f.given("max_window_layers"):
        inert.append(_no_rule(f, "max_window_layers", "SmolLM3"))
    return decoder(f, spans, Shape(qkv_bias=bias, out_bias=bias), same_mlp(f), inert=inert)


def olmo(f: Fields) -> Stack:
    """OLMo 1: all full; its LayerNorms have no parameters."""
    bias = f.flag("attention_bias")
    shape = Shape(qkv_bias=bias, out_bias=bias, norms=0)
    return decoder(f, all_full(f), shape, same_mlp(f, bias=False), final_norm=0)


def olmo2(f: Fields) -> Stack:
    """OLMo 2: all full, norms after each block, norms of queries and keys over all heads."""
    bias = f.flag("attention_bias")
    return decoder(f, all_full(f), Shape(qkv_bias=bias, out_bias=bias, qk_norm="all"), same_mlp(f, bias=False))


def olmo3(f: Fields) -> Stack:
    """OLMo 3: `layer_types`; without it every fourth layer is full and the others slide."""
    bias = f.flag("attention_bias")
    spans = by_layer_types(f, read_window(f), lambda index: (index + 1) % 4 != 0, "class default: every 4th layer full")
    return decoder(f, spans, Shape(qkv_bias=bias, out_bias=bias, qk_norm="all"), same_mlp(f, bias=False))


def olmoe(f: Fields) -> Stack:
    """OLMoE: all full, experts of `intermediate_size`."""
    bias = f.flag("attention_bias")
    parts = experts(f, "intermediate_size")
    return decoder(f, all_full(f), Shape(qkv_bias=bias, out_bias=bias, qk_norm="all"), lambda index: parts)


def cohere(f: Fields) -> Stack:
    """Command R: all full, attention and MLP in parallel behind one norm, a norm per head if `use_qk_norm`."""
    bias = f.flag("attention_bias")
    shape = Shape(qkv_bias=bias, out_bias=bias, norms=1, qk_norm="each" if f.flag("use_qk_norm") else "")
    return decoder(f, all_full(f), shape, same_mlp(f, bias=False))


def cohere2(f: Fields) -> Stack:
    """Command R7B, Command A: `layer_types`, or every `sliding_window_pattern`-th (4th) full; full layers have no RoPE."""
    every = f.whole("sliding_window_pattern", default=4)
    bias = f.flag("attention_bias")
    spans = [
        Span(span.source, window=span.window, rope="none" if span.window is None else "rope")
        for span in by_layer_types(f, read_window(f), lambda index: (index + 1) % every != 0, "sliding_window_pattern")
    ]
    heads = read_heads(f)
    own = Heads(heads.queries, heads.keys, hidden_size(f) // heads.queries)
    return decoder(f, spans, Shape(qkv_bias=bias, out_bias=bias, norms=1), same_mlp(f, bias=False), heads=own)


def glm(f: Fields) -> Stack:
    """GLM-4-9B: all full, biases of queries, keys and values by `attention_bias`, a fused gated MLP."""
    return decoder(f, all_full(f), Shape(qkv_bias=f.flag("attention_bias")), same_mlp(f, bias=False))


def glm4(f: Fields) -> Stack:
    """GLM-4-0414: the same with norms before and after each block."""
    return decoder(f, all_full(f), Shape(qkv_bias=f.flag("attention_bias"), norms=4), same_mlp(f, bias=False))


def unused_window(f: Fields, family: str) -> list[Inert]:
    """`sliding_window` in a config whose class has no rule for it."""
    found = [name for name in ("sliding_window", "layer_types", "max_window_layers") if f.given(name)]
    return [_no_rule(f, name, family) for name in found]


def _no_rule(f: Fields, name: str, family: str) -> Inert:
    value = f.config[name]
    text = f"{len(value)} entries" if isinstance(value, list) else str(value)
    return Inert(name, text, f"{family}'s class has no rule that reads it", f"configuration_{f.family}.py")
