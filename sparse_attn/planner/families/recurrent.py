"""RecurrentGemma, RWKV and LFM2: linear recurrences and short convolutions, with or without attention."""

from __future__ import annotations

from ..blocks import attention, build_layer, gated_mlp, small, whole
from ..fields import Fields
from ..recurrences import rg_lru, rwkv4, short_convolution
from .stack import Stack, hidden_size, layer_count, read_heads, read_layer_types


def recurrent_gemma(f: Fields) -> Stack:
    """`block_types` repeats: recurrent (RG-LRU) or attention with a window of `attention_window_size` keys."""
    hidden, heads, count = hidden_size(f), read_heads(f), layer_count(f)
    kinds = f.listed("block_types") or ["recurrent", "recurrent", "attention"]
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
