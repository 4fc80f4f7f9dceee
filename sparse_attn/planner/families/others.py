"""Further decoders: Granite 3, StarCoder2, Seed-OSS, Hunyuan, EXAONE 4, dots.llm1, ERNIE 4.5, Nemotron, Qwen3-VL."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import gated_mlp, moe, small, whole
from ..fields import Fields
from ..records import Weights
from .decoder import Shape, all_full, by_layer_types, decoder, experts, one_window, same_mlp
from .deepseek import sparse_after
from .llama import unused_window
from .qwen import sparse_feed
from .stack import Stack, hidden_size, layer_count, read_window


def granite_moe(f: Fields) -> Stack:
    """Granite 3 MoE: all full; experts of `intermediate_size`, and one more of `shared_intermediate_size` if given."""
    hidden, shared = hidden_size(f), f.maybe_whole("shared_intermediate_size", least=0) or 0
    parts: tuple[Weights, ...] = tuple(experts(f, "intermediate_size"))
    if shared:
        parts += (whole("shared experts", 3 * hidden * shared),)
    bias = f.flag("attention_bias")
    return decoder(f, all_full(f), Shape(qkv_bias=bias, out_bias=bias), lambda index: parts)


def starcoder2(f: Fields) -> Stack:
    """`sliding_window` on every layer, null: none; LayerNorms, a plain MLP, biases by `use_bias`."""
    bias = f.flag("use_bias", default=True)
    shape = Shape(qkv_bias=bias, out_bias=bias, norms=4)
    return decoder(f, one_window(f), shape, same_mlp(f, bias=bias, gated=False), final_norm=2)


def seed_oss(f: Fields) -> Stack:
    """All full; biases of queries, keys and values and of the output by two fields."""
    shape = Shape(qkv_bias=f.flag("attention_bias"), out_bias=f.flag("attention_out_bias"))
    return decoder(f, all_full(f), shape, same_mlp(f))


def hunyuan_dense(f: Fields) -> Stack:
    """All full, norms of queries and keys."""
    bias = f.flag("attention_bias")
    return decoder(f, all_full(f), Shape(qkv_bias=bias, out_bias=bias, qk_norm="head"), same_mlp(f, bias=False))


def exaone4(f: Fields) -> Stack:
    """`layer_types`; without it every `sliding_window_pattern`-th layer is full, all of them where the window is null."""
    window = read_window(f)
    period = f.value("sliding_window_pattern", default=4)
    if isinstance(period, str):  # "LLLG": one letter a layer of the period, G for global
        if not period or set(period) - {"L", "G"}:
            raise f.fail(f"sliding_window_pattern must be a number or letters L and G, got {period!r}")
        local = [letter == "L" for letter in period]
    else:
        every = f.whole("sliding_window_pattern", default=4, least=0)
        local = [True] * (every - 1) + [False] if every else [False]
    spans = by_layer_types(
        f, window, lambda index: window is not None and local[index % len(local)], "sliding_window_pattern"
    )
    return decoder(f, spans, Shape(qk_norm="head"), same_mlp(f, bias=False))


def dots1(f: Fields) -> Stack:
    """`layer_types`; without it layers from `max_window_layers` on slide where `sliding_window` is given."""
    window = read_window(f)
    first = f.whole("max_window_layers", default=0, least=0)
    spans = by_layer_types(f, window, lambda index: window is not None and index >= first, "max_window_layers")
    bias = f.flag("attention_bias")
    return decoder(f, spans, Shape(qkv_bias=bias, out_bias=bias, qk_norm="head"), sparse_after(f))


def ernie(f: Fields) -> Stack:
    """ERNIE 4.5, dense: all full, biases by `use_bias`."""
    bias = f.flag("use_bias")
    return decoder(f, all_full(f), Shape(qkv_bias=bias, out_bias=bias), same_mlp(f, bias=bias))


def ernie_moe(f: Fields) -> Stack:
    """ERNIE 4.5 MoE: experts in every `moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index`."""
    bias, hidden, count = f.flag("use_bias"), hidden_size(f), layer_count(f)
    first, every = f.whole("moe_layer_start_index", least=0), f.whole("moe_layer_interval")
    last = f.whole("moe_layer_end_index", least=-1)
    last = count - 1 if last == -1 else last
    width = f.whole("moe_intermediate_size")
    shared = f.whole("moe_num_shared_experts", least=0)
    routed = moe(
        hidden,
        width,
        f.whole("moe_num_experts"),
        f.whole("moe_k"),
        shared=shared * width,
        router_bias=f.whole("moe_num_experts"),
    )
    routed += small("shared experts", (2 * shared * width + hidden) * bias * bool(shared))
    dense = gated_mlp(hidden, f.whole("intermediate_size"), bias=bias)

    def feed(index: int) -> Sequence[Weights]:
        return routed if (index + 1) % every == 0 and first <= index <= last else dense

    head = small("head", f.whole("vocab_size") * bias)
    return decoder(f, all_full(f), Shape(qkv_bias=bias, out_bias=bias), feed, extra=head)


def nemotron(f: Fields) -> Stack:
    """Nemotron-4, Minitron: all full, LayerNorms, a plain MLP."""
    bias = f.flag("attention_bias")
    shape = Shape(qkv_bias=bias, out_bias=bias, norms=4)
    return decoder(f, all_full(f), shape, same_mlp(f, gated=False), final_norm=2)


def arcee(f: Fields) -> Stack:
    """Arcee's AFM: a Llama with a plain MLP."""
    bias = f.flag("attention_bias")
    return decoder(f, all_full(f), Shape(qkv_bias=bias, out_bias=bias), same_mlp(f, gated=False))


def qwen3_vl(f: Fields) -> Stack:
    """Qwen3-VL's language model: Qwen3 without a rule for sliding layers."""
    bias = f.flag("attention_bias")
    shape = Shape(qkv_bias=bias, out_bias=bias, qk_norm="head")
    return decoder(f, all_full(f), shape, same_mlp(f, bias=False), inert=unused_window(f, "Qwen3-VL"))


def qwen3_vl_moe(f: Fields) -> Stack:
    """The same with Qwen3-MoE's experts."""
    bias = f.flag("attention_bias")
    shape = Shape(qkv_bias=bias, out_bias=bias, qk_norm="head")
    return decoder(f, all_full(f), shape, sparse_feed(f), inert=unused_window(f, "Qwen3-VL-MoE"))
