"""Mamba and its hybrids: Mamba, Mamba-2, Jamba, Bamba, Granite 4, Falcon-H1, Nemotron-H, Zamba2; RecurrentGemma, RWKV, LFM2."""

from __future__ import annotations

import math
from dataclasses import replace

from ..blocks import NOTHING, Mixer, attention, build_layer, gated_mlp, moe, plain_mlp, small, whole
from ..fields import Fields
from ..records import Layer, Weights
from ..recurrences import mamba as mamba_mixer
from ..recurrences import mamba2 as mamba2_mixer
from ..recurrences import rg_lru, rwkv4, short_convolution
from .decoder import Shape, experts, widest
from .stack import Stack, hidden_size, layer_count, read_heads, read_layer_types

_REMAP = {"mamba": "linear_attention", "attention": "full_attention"}
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
    hidden, heads, count = hidden_size(f), read_heads(f), layer_count(f)
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
    hidden, heads, count = hidden_size(f), read_heads(f), layer_count(f)
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
    types = [_REMAP.get(kind, kind) for kind in types]
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
    heads = read_heads(f)
    bias = f.flag("attention_bias")
    extra = Shape(qkv_bias=bias, out_bias=bias).extra(heads, hidden)
    return attention(hidden, heads.queries, heads.keys, heads.dim, extra=extra)


def falcon_h1(f: Fields) -> Stack:
    """Every layer has attention and Mamba-2 side by side. `mamba_d_ssm`, or `mamba_expand` x hidden, is Mamba's width."""
    hidden, heads, count = hidden_size(f), read_heads(f), layer_count(f)
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


def nemotron_h(f: Fields) -> Stack:
    """One block a layer: M Mamba-2, * attention, - MLP, E experts (`hybrid_override_pattern` or `layers_block_type`).

    Attention has no RoPE. `num_hidden_layers` must agree with the pattern.
    """
    hidden = hidden_size(f)
    types, source = _nemotron_types(f)
    heads = read_heads(f)
    full = attention(hidden, heads.queries, heads.keys, heads.dim)
    linear = mamba2_mixer(
        hidden,
        f.whole("mamba_num_heads"),
        f.whole("mamba_head_dim"),
        f.whole("ssm_state_size"),
        f.whole("n_groups", "mamba_n_groups"),
        f.whole("conv_kernel", "mamba_d_conv"),
        bias=f.flag("use_bias"),
        conv_bias=f.flag("use_conv_bias", "mamba_conv_bias", default=True),
    )
    parts: dict[str, tuple[Mixer, tuple[Weights, ...]]] = {
        "linear_attention": (linear, ()),
        "full_attention": (full, ()),
    }
    width = f.whole("mamba_num_heads") * f.whole("mamba_head_dim")
    if "mlp" in types:
        parts["mlp"] = (NOTHING, plain_mlp(hidden, f.whole("intermediate_size"), bias=f.flag("mlp_bias")))
        width = max(width, f.whole("intermediate_size"))
    if "moe" in types:
        parts["moe"] = (NOTHING, _nemotron_experts(f, hidden))
        width = max(width, f.whole("num_experts_per_tok") * f.whole("moe_intermediate_size"))
    layers = tuple(
        build_layer(index, *parts[kind], norms=hidden, source=source, rope="none") for index, kind in enumerate(types)
    )
    return Stack(layers, width)


def _nemotron_types(f: Fields) -> tuple[list[str], str]:
    letters = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
    count = f.maybe_whole("num_hidden_layers")
    listed = f.listed("layers_block_type")
    pattern = f.value("hybrid_override_pattern")
    if listed is not None:
        types = [_REMAP.get(str(kind), str(kind)) for kind in listed]
        source = "layers_block_type"
    elif isinstance(pattern, str) and pattern:
        unknown = sorted(set(pattern) - set(letters))
        if unknown:
            raise f.fail(f"hybrid_override_pattern has {unknown[0]!r}, expected M, E, * and - only")
        types, source = [letters[one] for one in pattern], "hybrid_override_pattern"
    else:
        raise f.fail(
            "neither hybrid_override_pattern nor layers_block_type is given, and one of them says what a layer is"
        )
    bad = [kind for kind in types if kind not in letters.values()]
    if bad:
        raise f.fail(f"{source} has {bad[0]!r}, expected one of {', '.join(letters.values())}")
    if count is not None and count != len(types):
        raise f.fail(f"num_hidden_layers is {count}, but {source} has {len(types)} entries")
    return types, source


def _nemotron_experts(f: Fields, hidden: int) -> tuple[Weights, ...]:
    latent = f.maybe_whole("moe_latent_size")
    inside = latent or hidden
    count = f.whole("n_routed_experts")
    routed = moe(inside, f.whole("moe_intermediate_size"), count, f.whole("num_experts_per_tok"), matrices=2)
    routed = tuple(one for one in routed if one.part == "experts")
    parts = (*routed, whole("router", count * hidden, linear=False))
    shared = f.whole("moe_shared_expert_intermediate_size")
    parts += (
        whole("shared experts", 2 * hidden * shared),
        *small("shared experts", (hidden + shared) * f.flag("mlp_bias")),
    )
    if latent:
        parts += (whole("mlp", 2 * hidden * latent),)
    return parts


def zamba2(f: Fields) -> Stack:
    """Mamba-2 layers; those named "hybrid" in `layers_block_type` first pass one of `num_mem_blocks` shared attention blocks.

    The shared block reads the layer's input beside the embedding, so it is twice as wide; each use has its own keys and
    values, its own low-rank adapters and its own projection.
    """
    hidden, count = hidden_size(f), layer_count(f)
    types = f.listed("layers_block_type", length=count)
    if types is None:
        if count != 54:
            raise f.fail("layers_block_type is missing, and the class default is for 54 layers only")
        one, six = ["mamba"], ["mamba"] * 5 + ["hybrid"]
        types = one + six * 7 + ["mamba"] * 4 + ["hybrid"] + ["mamba"] * 3 + ["hybrid"] + ["mamba"] * 2
    for kind in types:
        if kind not in ("mamba", "hybrid", "linear_attention"):
            raise f.fail(f"layers_block_type has {kind!r}, expected mamba or hybrid")
    wide = 2 * hidden
    queries = f.whole("num_attention_heads")
    keys = f.maybe_whole("num_key_value_heads") or queries
    dim = f.maybe_whole("attention_head_dim") or wide // queries
    inner, heads = f.whole("mamba_expand") * hidden, f.whole("n_mamba_heads")
    width = f.maybe_whole("intermediate_size") or 4 * hidden
    linear = mamba2_mixer(
        hidden,
        heads,
        inner // heads,
        f.whole("mamba_d_state"),
        f.whole("mamba_ngroups"),
        f.whole("mamba_d_conv"),
        bias=f.flag("add_bias_linear"),
        conv_bias=f.flag("use_conv_bias", default=True),
    )
    rank = f.whole("adapter_rank")
    block = attention(wide, queries, keys, dim)
    used = sum(kind == "hybrid" for kind in types)
    blocks = min(f.whole("num_mem_blocks"), used)
    shared = wide * dim * (queries + 2 * keys) + queries * dim * hidden
    adapters = rank * hidden + rank * 2 * width
    if f.flag("use_shared_attention_adapter"):
        adapters += 3 * 2 * rank * wide
    own = whole("attention", hidden * hidden + adapters)
    both = replace(block, weights=(own,)).beside(linear)
    layers = tuple(
        build_layer(
            index,
            both if kind == "hybrid" else linear,
            (),
            norms=hidden,
            source=f"layers_block_type[{index}]" if f.given("layers_block_type") else "class default",
            rope="rope" if f.flag("use_mem_rope") else "none",
        )
        for index, kind in enumerate(types)
    )
    extra: tuple[Weights, ...] = ()
    for place in range(blocks):
        uses = len(range(place, used, blocks))
        extra += (
            Weights("attention", shared, shared, uses=uses),
            Weights("mlp", 3 * hidden * width, 3 * hidden * width, uses=uses),
            *small("norms", wide + hidden),
            *small("mlp", (2 * width + hidden) * f.flag("add_bias_linear")),
        )
    notes = (
        (f"{used} layers share {blocks} attention block(s), each layer with its own keys and values",) if used else ()
    )
    return Stack(layers, max(width, inner), extra=extra, notes=notes)


def recurrent_gemma(f: Fields) -> Stack:
    """`block_types` repeats: recurrent (RG-LRU) or attention with a window of `attention_window_size` keys."""
    hidden, heads, count = hidden_size(f), read_heads(f), layer_count(f)
    kinds = f.listed("block_types", "_block_types") or ["recurrent", "recurrent", "attention"]
    for kind in kinds:
        if kind not in ("recurrent", "attention"):
            raise f.fail(f"block_types has {kind!r}, expected recurrent or attention")
    width = f.maybe_whole("lru_width") or hidden
    linear = rg_lru(hidden, width, f.whole("num_attention_heads"), f.whole("conv1d_width"))
    bias = f.flag("attention_bias")
    local = attention(
        hidden,
        heads.queries,
        heads.keys,
        heads.dim,
        window=f.whole("attention_window_size"),
        extra=heads.both * bias + hidden,
    )
    inside = f.whole("intermediate_size") // 2
    parts = gated_mlp(hidden, inside, bias=True)
    layers = tuple(
        build_layer(
            index,
            linear if kinds[index % len(kinds)] == "recurrent" else local,
            parts,
            norms=2 * hidden,
            source="block_types",
            rope="partial rope",
        )
        for index in range(count)
    )
    return Stack(layers, inside)


def rwkv(f: Fields) -> Stack:
    """RWKV-4: every layer time mixing and channel mixing; the context is a training length, the state has none."""
    hidden, count = hidden_size(f), layer_count(f)
    width = f.maybe_whole("attention_hidden_size") or hidden
    inside = f.maybe_whole("intermediate_size") or 4 * hidden
    mixer = rwkv4(hidden, width)
    parts = (whole("mlp", 2 * hidden * inside + hidden * hidden), *small("mlp", 2 * hidden))
    layers = tuple(
        build_layer(index, mixer, parts, norms=(6 if index == 0 else 4) * hidden, source="model_type")
        for index in range(count)
    )
    return Stack(layers, inside, final_norm=2)


def lfm2(f: Fields) -> Stack:
    """LFM2: `layer_types` (or `full_attn_idxs`): full attention or a gated short convolution."""
    hidden, heads, count = hidden_size(f), read_heads(f), layer_count(f)
    chosen = f.listed("full_attn_idxs")
    types = read_layer_types(f, ("full_attention", "conv")) or [
        "full_attention" if chosen is None or index in chosen else "conv" for index in range(count)
    ]
    width = f.whole("block_ff_dim", "intermediate_size")
    if f.flag("block_auto_adjust_ff_dim", default=True):
        width = int(2 * width / 3)
        width = int((f.number("block_ffn_dim_multiplier", default=1.0) or 1.0) * width)
        step = f.whole("block_multiple_of")
        width = step * -(-width // step)
    full = attention(hidden, heads.queries, heads.keys, heads.dim, extra=2 * heads.dim)
    linear = short_convolution(hidden, f.whole("conv_L_cache"), bias=f.flag("conv_bias"))
    parts = gated_mlp(hidden, width)
    layers = tuple(
        build_layer(
            index, full if kind == "full_attention" else linear, parts, norms=2 * hidden, source=f"layer_types[{index}]"
        )
        for index, kind in enumerate(types)
    )
    return Stack(layers, width)


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
