"""Qwen3-Next, Qwen3.5, OLMo hybrid, Kimi-Linear: delta nets with full attention at intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..blocks import Mixer, attention, build_layer, gated_mlp
from ..fields import Fields, check_whole
from ..latent import latent_attention, read_latent
from ..records import Weights
from ..recurrences import gated_delta_net, kimi_delta_attention
from .decoder import Shape, experts, widest
from .deepseek import sparse_after, unused_head_dim
from .qwen import sparse_feed
from .stack import Stack, hidden_size, layer_count, read_heads, read_layer_types

_KINDS = ("full_attention", "linear_attention")


def qwen3_next(f: Fields) -> Stack:
    """`layer_types`, or every `full_attention_interval`-th (4th) layer full; experts and a gated shared expert."""
    shared = f.whole("shared_expert_intermediate_size", least=0)
    return _qwen(f, sparse_feed(f, shared=shared, shared_gate=True))


def qwen3_5_moe(f: Fields) -> Stack:
    """The same; every layer has experts."""
    parts = experts(f, shared=f.whole("shared_expert_intermediate_size", least=0), shared_gate=True)
    return _qwen(f, lambda index: parts)


def qwen3_5(f: Fields) -> Stack:
    """The same with a dense MLP."""
    parts = gated_mlp(hidden_size(f), f.whole("intermediate_size"))
    return _qwen(f, lambda index: parts)


def olmo_hybrid(f: Fields) -> Stack:
    """`layer_types`, or every fourth layer full; full layers as in OLMo 3, delta-net layers normed before."""
    hidden, heads, count = hidden_size(f), read_heads(f), layer_count(f)
    types = read_layer_types(f, _KINDS)
    if types is None:
        types = ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(count)]
        if "full_attention" not in types:
            types[-1] = "full_attention"
    key_heads = f.maybe_whole("linear_num_key_heads") or heads.queries
    value_heads = f.maybe_whole("linear_num_value_heads") or heads.queries
    key_dim = f.maybe_whole("linear_key_head_dim") or int(0.75 * hidden / key_heads)
    value_dim = f.maybe_whole("linear_value_head_dim") or 2 * key_dim
    linear = gated_delta_net(hidden, key_heads, value_heads, key_dim, value_dim, f.whole("linear_conv_kernel_dim"))
    bias = f.flag("attention_bias")
    extra = Shape(qkv_bias=bias, out_bias=bias, qk_norm="all").extra(heads, hidden)
    full = attention(hidden, heads.queries, heads.keys, heads.dim, extra=extra)
    parts = gated_mlp(hidden, f.whole("intermediate_size"))
    rope = "rope" if f.given("rope_parameters", "rope_theta", "rope_scaling") else "none"
    layers = tuple(
        build_layer(
            index,
            full if kind == "full_attention" else linear,
            parts,
            norms=2 * hidden,
            source=_where(f, index, "class default: every 4th layer full"),
            rope=rope,
        )
        for index, kind in enumerate(types)
    )
    return Stack(layers, widest(f))


def kimi_linear(f: Fields) -> Stack:
    """`layer_types`, or `linear_attn_config`'s lists, which count layers from 1; latent layers have no RoPE."""
    hidden, count = hidden_size(f), layer_count(f)
    sub = f.value("linear_attn_config", default={})
    if not isinstance(sub, Mapping):
        raise f.fail(f"linear_attn_config must be an object, got {sub!r}")
    source = "linear_attn_config.full_attn_layers (counted from 1)"
    types = read_layer_types(f, _KINDS)
    if types is None and "full_attn_layers" in sub and "kda_layers" in sub:
        types = _one_based(f, sub, count)
    if types is None:
        types = ["full_attention" if index and index % 4 == 0 else "linear_attention" for index in range(count)]
        source = "class default: every 4th layer"
    own = Fields(sub, "linear_attn_config")
    linear = kimi_delta_attention(
        hidden,
        own.maybe_whole("num_heads") or f.whole("linear_num_heads"),
        own.maybe_whole("head_dim") or f.whole("linear_head_dim"),
        own.maybe_whole("short_conv_kernel_size") or f.whole("linear_conv_kernel_dim"),
    )
    full = latent_attention(hidden, read_latent(f))
    first = f.whole("first_k_dense_replace", default=1, least=0)
    feed = sparse_after(f, first_dense=first)
    layers = tuple(
        build_layer(
            index,
            full if kind == "full_attention" else linear,
            feed(index),
            norms=2 * hidden,
            source=_where(f, index, source),
            rope="none",
        )
        for index, kind in enumerate(types)
    )
    return Stack(layers, widest(f), inert=tuple(unused_head_dim(f)), tied=False)  # its class ties nothing


def _one_based(f: Fields, sub: Mapping[str, object], count: int) -> list[str]:
    types: list[str | None] = [None] * count
    for name, kind in (("full_attn_layers", "full_attention"), ("kda_layers", "linear_attention")):
        listed = sub[name]
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise f.fail(f"linear_attn_config.{name} must be a list, got {listed!r}")
        for number in listed:
            place = check_whole(f"linear_attn_config.{name}", number, 1, f.family)
            if place > count or types[place - 1] is not None:
                raise f.fail(
                    f"linear_attn_config.{name} names layer {place} (from 1), which is above {count} or named twice"
                )
            types[place - 1] = kind
    missing = [index + 1 for index, kind in enumerate(types) if kind is None]
    if missing:
        raise f.fail(f"linear_attn_config names neither kind for layer {missing[0]} (from 1)")
    return [str(kind) for kind in types]


def _qwen(f: Fields, feed: Callable[[int], Sequence[Weights]]) -> Stack:
    hidden, heads, count = hidden_size(f), read_heads(f), layer_count(f)
    every = f.whole("full_attention_interval", default=4)
    types = read_layer_types(f, _KINDS) or [
        "linear_attention" if (index + 1) % every else "full_attention" for index in range(count)
    ]
    bias = f.flag("attention_bias")
    extra = Shape(qkv_bias=bias, out_bias=bias, qk_norm="head", gated=True).extra(heads, hidden)
    full = attention(hidden, heads.queries, heads.keys, heads.dim, extra=extra, gate=heads.queries * heads.dim)
    linear = read_delta_net(f)
    layers = tuple(
        build_layer(
            index,
            full if kind == "full_attention" else linear,
            feed(index),
            norms=2 * hidden,
            source=_where(f, index, "full_attention_interval"),
            rope="partial rope",
        )
        for index, kind in enumerate(types)
    )
    notes = []
    if f.maybe_whole("mtp_num_hidden_layers", least=0):
        notes.append("the checkpoint holds a layer for multi-token prediction besides, which is not counted here")
    return Stack(layers, _width(f), notes=tuple(notes))


def read_delta_net(f: Fields) -> Mixer:
    """Heads and dims of keys and values from `linear_num_*_heads` and `linear_*_head_dim`; `linear_conv_kernel_dim`."""
    return gated_delta_net(
        hidden_size(f),
        f.whole("linear_num_key_heads"),
        f.whole("linear_num_value_heads"),
        f.whole("linear_key_head_dim"),
        f.whole("linear_value_head_dim"),
        f.whole("linear_conv_kernel_dim"),
    )


def _width(f: Fields) -> int:
    chosen = f.maybe_whole("num_experts_per_tok") or 0
    if not chosen:
        return f.whole("intermediate_size")
    return chosen * f.whole("moe_intermediate_size") + f.whole("shared_expert_intermediate_size", least=0)


def _where(f: Fields, index: int, otherwise: str) -> str:
    return f"layer_types[{index}]" if f.given("layer_types") else otherwise
