"""Mamba, Mamba-2, Jamba, Bamba, Granite 4, Falcon-H1: state spaces, with attention in or beside some layers."""

from __future__ import annotations

import math

from ..blocks import NOTHING, Mixer, attention, build_layer, gated_mlp, whole
from ..fields import Fields
from ..records import Layer, Weights
from ..recurrences import mamba as mamba_mixer
from ..recurrences import mamba2 as mamba2_mixer
from .decoder import Shape, experts, widest
from .stack import LEGACY_TYPES, Stack, hidden_size, layer_count, read_heads, read_layer_types

_KINDS = ("full_attention", "linear_attention", "attention", "mamba")


def mamba(f: Fields) -> Stack:
    """Mamba: every layer a recurrence, no MLP."""
    hidden = hidden_size(f)
    inner = f.maybe_whole("intermediate_size", "d_inner") or int(f.whole("expand") * hidden)
    mixer = mamba_mixer(
        hidden,
        inner,
        f.whole("state_size"),
        f.whole("conv_kernel"),
        _rank(f, "time_step_rank", hidden),
        bias=f.flag("use_bias"),
        conv_bias=f.flag("use_conv_bias", default=True),
    )
    return _recurrent(f, mixer, inner)


def mamba2(f: Fields) -> Stack:
    """Mamba-2: every layer a recurrence, no MLP; `num_heads` x `head_dim` = `expand` x `hidden_size`."""
    hidden = hidden_size(f)
    heads, dim = f.whole("num_heads", default=128), f.whole("head_dim", default=64)
    if heads * dim != f.whole("expand") * hidden:
        raise f.fail(f"num_heads {heads} x head_dim {dim} is not expand {f.whole('expand')} x hidden_size {hidden}")
    mixer = mamba2_mixer(
        hidden,
        heads,
        dim,
        f.whole("state_size"),
        f.whole("n_groups"),
        f.whole("conv_kernel"),
        bias=f.flag("use_bias"),
        conv_bias=f.flag("use_conv_bias", default=True),
    )
    return _recurrent(f, mixer, heads * dim)


def jamba(f: Fields) -> Stack:
    """Layer i has attention if i % `attn_layer_period` == `attn_layer_offset`, experts likewise; no RoPE anywhere."""
    hidden, heads, count = hidden_size(f), read_heads(f, hybrid=True), layer_count(f)
    period, offset = f.whole("attn_layer_period"), f.whole("attn_layer_offset", least=0)
    every, first = f.whole("expert_layer_period"), f.whole("expert_layer_offset", least=0)
    for name, inside, of in (("attn", offset, period), ("expert", first, every)):
        if inside >= of:
            raise f.fail(f"{name}_layer_offset {inside} must be below {name}_layer_period {of}")
    linear = mamba_mixer(
        hidden,
        f.whole("mamba_expand") * hidden,
        f.whole("mamba_d_state"),
        f.whole("mamba_d_conv"),
        _rank(f, "mamba_dt_rank", hidden),
        bias=f.flag("mamba_proj_bias"),
        conv_bias=f.flag("mamba_conv_bias", default=True),
        normed=True,
    )
    full = attention(hidden, heads.queries, heads.keys, heads.dim)
    sparse = f.whole("num_experts") > 1
    routed = experts(f, "intermediate_size") if sparse else ()
    dense = gated_mlp(hidden, f.whole("intermediate_size"))
    layers = tuple(
        build_layer(
            index,
            full if index % period == offset else linear,
            routed if sparse and index % every == first else dense,
            norms=2 * hidden,
            source="attn_layer_period, attn_layer_offset",
            rope="none",
        )
        for index in range(count)
    )
    return Stack(layers, widest(f))


def bamba(f: Fields) -> Stack:
    """`attn_layer_indices` have attention, the others Mamba-2."""
    hidden, heads, count = hidden_size(f), read_heads(f, hybrid=True), layer_count(f)
    chosen = f.listed("attn_layer_indices") or []
    bad = [one for one in chosen if not isinstance(one, int) or not 0 <= one < count]
    if bad:
        raise f.fail(f"attn_layer_indices names layer {bad[0]}, expected 0 to {count - 1}")
    bias = f.flag("attention_bias")
    full = attention(
        hidden, heads.queries, heads.keys, heads.dim, extra=Shape(qkv_bias=bias, out_bias=bias).extra(heads, hidden)
    )
    linear = read_mamba2(f)
    parts = gated_mlp(hidden, f.whole("intermediate_size"), bias=f.flag("mlp_bias"))
    layers = tuple(
        build_layer(
            index,
            full if index in chosen else linear,
            parts,
            norms=2 * hidden,
            source="attn_layer_indices",
            rope="partial rope",
        )
        for index in range(count)
    )
    return Stack(layers, f.whole("intermediate_size"))


def granite_hybrid(f: Fields) -> Stack:
    """Granite 4: `layer_types` (or `layers_block_type`), absent: all Mamba-2; NoPE unless `position_embedding_type` is rope."""
    hidden, count = hidden_size(f), layer_count(f)
    types = read_layer_types(f, _KINDS) or ["linear_attention"] * count
    types = [LEGACY_TYPES.get(kind, kind) for kind in types]
    rope = "rope" if f.value("position_embedding_type") == "rope" else "none"
    shared = f.whole("shared_intermediate_size", least=0)
    count_experts = f.whole("num_local_experts", least=0)
    parts: tuple[Weights, ...] = (whole("shared experts" if count_experts else "mlp", 3 * hidden * shared),)
    if count_experts:
        parts = (*experts(f, "intermediate_size"), *parts)
    full = _granite_attention(f, hidden) if "full_attention" in types else NOTHING
    linear = read_mamba2(f) if "linear_attention" in types else NOTHING
    layers = tuple(
        build_layer(
            index,
            full if kind == "full_attention" else linear,
            parts,
            norms=2 * hidden,
            source=f"layer_types[{index}]" if f.given("layer_types") else "class default: all recurrent",
            rope=rope,
        )
        for index, kind in enumerate(types)
    )
    width = shared + (f.whole("num_experts_per_tok", least=0) * f.whole("intermediate_size") if count_experts else 0)
    return Stack(layers, width)


def _granite_attention(f: Fields, hidden: int) -> Mixer:
    heads = read_heads(f, hybrid=True)
    bias = f.flag("attention_bias")
    extra = Shape(qkv_bias=bias, out_bias=bias).extra(heads, hidden)
    return attention(hidden, heads.queries, heads.keys, heads.dim, extra=extra)


def falcon_h1(f: Fields) -> Stack:
    """Every layer has attention and Mamba-2 side by side. `mamba_d_ssm`, or `mamba_expand` x hidden, is Mamba's width."""
    hidden, heads, count = hidden_size(f), read_heads(f, hybrid=True), layer_count(f)
    bias = f.flag("attention_bias")
    full = attention(
        hidden, heads.queries, heads.keys, heads.dim, extra=Shape(qkv_bias=bias, out_bias=bias).extra(heads, hidden)
    )
    width, dim = f.whole("mamba_n_heads"), f.value("mamba_d_head")
    given = f.maybe_whole("mamba_d_ssm") if f.given("mamba_d_ssm") else None
    if not isinstance(dim, int):
        dim = (given or f.whole("mamba_expand") * hidden) // width
    if given is not None and given != width * dim:
        raise f.fail(f"mamba_d_ssm {given} is not mamba_n_heads {width} x mamba_d_head {dim}")
    linear = mamba2_mixer(
        hidden,
        width,
        dim,
        f.whole("mamba_d_state"),
        f.whole("mamba_n_groups"),
        f.whole("mamba_d_conv"),
        bias=f.flag("mamba_proj_bias"),
        conv_bias=f.flag("mamba_conv_bias", default=True),
        out_bias=f.flag("projectors_bias"),
        normed=f.flag("mamba_rms_norm"),
    )
    both = full.beside(linear)
    parts = gated_mlp(hidden, f.whole("intermediate_size"), bias=f.flag("mlp_bias"))
    layers = tuple(build_layer(index, both, parts, norms=2 * hidden, source="model_type") for index in range(count))
    return Stack(layers, f.whole("intermediate_size"))


def read_mamba2(f: Fields) -> Mixer:
    """Bamba's and Granite's names: `mamba_n_heads`, `mamba_d_head` ("auto": from `mamba_expand`), `mamba_d_state`, ..."""
    hidden, heads = hidden_size(f), f.whole("mamba_n_heads")
    dim = f.value("mamba_d_head")
    inner = f.whole("mamba_expand") * hidden
    if not isinstance(dim, int) or isinstance(dim, bool):
        dim = inner // heads
    if heads * dim != inner:
        raise f.fail(f"mamba_n_heads {heads} x mamba_d_head {dim} is not mamba_expand x hidden_size {inner}")
    return mamba2_mixer(
        hidden,
        heads,
        dim,
        f.whole("mamba_d_state"),
        f.whole("mamba_n_groups"),
        f.whole("mamba_d_conv"),
        bias=f.flag("mamba_proj_bias"),
        conv_bias=f.flag("mamba_conv_bias", default=True),
    )


def _recurrent(f: Fields, mixer: Mixer, width: int) -> Stack:
    hidden = hidden_size(f)
    layers: tuple[Layer, ...] = tuple(
        build_layer(index, mixer, (), norms=hidden, source="model_type") for index in range(layer_count(f))
    )
    return Stack(layers, width)


def _rank(f: Fields, name: str, hidden: int) -> int:
    value = f.value(name)
    return math.ceil(hidden / 16) if value in (None, "auto") else f.whole(name)
