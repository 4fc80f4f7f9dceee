"""Zamba2: Mamba-2 layers with attention blocks that several layers share."""

from __future__ import annotations

from dataclasses import replace

from ..blocks import attention, build_layer, small, whole
from ..fields import Fields
from ..records import Weights
from ..recurrences import mamba2 as mamba2_mixer
from .stack import Stack, hidden_size, layer_count


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
    if inner % heads:
        raise f.fail(f"mamba_expand x hidden_size {inner} is not a multiple of n_mamba_heads {heads}")
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
