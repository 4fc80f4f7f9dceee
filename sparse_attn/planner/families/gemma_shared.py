"""Gemma 3n and 4: upper layers read the keys and values of a lower one, and each layer has an embedding of its own."""

from __future__ import annotations

from dataclasses import replace

from ..blocks import Mixer, attention, build_layer, gated_mlp, small, whole
from ..fields import Fields, check_whole
from ..records import Weights
from .decoder import experts, widest
from .stack import Stack, hidden_size, layer_count, read_heads, read_layer_types


def gemma3n(f: Fields) -> Stack:
    """`layer_types`, without it every 5th full; layers share keys and values as in Gemma 4.

    `intermediate_size` may be a list. Beside the usual parts: a low-rank path (`laurel_rank`) and `altup_num_inputs`
    residual streams with a router each.
    """
    hidden, count, heads = hidden_size(f), layer_count(f), read_heads(f)
    window = f.whole("sliding_window")
    types = read_layer_types(f, ("full_attention", "sliding_attention")) or [
        "sliding_attention" if (index + 1) % 5 else "full_attention" for index in range(count)
    ]
    shared = f.whole("num_kv_shared_layers", default=0, least=0)
    if shared >= count:
        raise f.fail(f"num_kv_shared_layers {shared} must be below num_hidden_layers {count}")
    givers = _givers(f, types, count - shared) if shared else {}
    given = f.value("intermediate_size")
    widths = f.listed("intermediate_size", length=count) if isinstance(given, list) else [given] * count
    widths = [check_whole("intermediate_size", one, 1, f.family) for one in widths or ()]
    inputs, streams, rank = f.whole("hidden_size_per_layer_input"), f.whole("altup_num_inputs"), f.whole("laurel_rank")
    mixing = streams**2 + streams**3 + streams * hidden
    beside: tuple[Weights, ...] = (
        whole("per-layer inputs", 2 * hidden * inputs),
        whole("mlp", 2 * hidden * rank),
        whole("residual streams", mixing, linear=False),
        *small("norms", 4 * hidden),
    )
    layers = []
    for index, kind in enumerate(types):
        reads = givers[kind] if index >= count - shared else None
        local = window if kind == "sliding_attention" else None
        mixer = attention(hidden, heads.queries, heads.keys, heads.dim, window=local)
        kept = heads.keys if reads is None else 0
        matrices = hidden * heads.dim * 2 * (heads.queries + kept)
        bias = (heads.dim * (heads.queries + 2 * kept) + hidden) * f.flag("attention_bias")
        extra = small("attention", heads.dim * (2 if kept else 1) + bias)
        layers.append(
            build_layer(
                index,
                replace(mixer, weights=(whole("attention", matrices), *extra)),
                (*gated_mlp(hidden, widths[index]), *beside),
                norms=4 * hidden,
                source=f"layer_types[{index}]" if f.given("layer_types") else "class default: every 5th layer full",
                shares_with=reads,
            )
        )
    top = whole("residual streams", 2 * (streams - 1) * hidden * hidden)
    return Stack(tuple(layers), max(widths), extra=(*_inputs(f, hidden, inputs, count), top))


def gemma4(f: Fields) -> Stack:
    """`layer_types`, without it every 6th full; the last layer is always full.

    Full layers have `global_head_dim` and, with `attention_k_eq_v`, `num_global_key_value_heads` and no value projection
    (values are the normed keys, and both are kept). The last `num_kv_shared_layers` layers read the keys and values of
    the last layer of their kind below. `hidden_size_per_layer_input`: a second embedding for each layer.
    """
    hidden, count = hidden_size(f), layer_count(f)
    window = f.whole("sliding_window")
    if f.value("use_bidirectional_attention") == "all":
        window = window // 2 + 1
    types = read_layer_types(f, ("full_attention", "sliding_attention")) or [
        "sliding_attention" if (index + 1) % 6 else "full_attention" for index in range(count)
    ]
    types[-1] = "full_attention"
    shared = f.whole("num_kv_shared_layers", default=0, least=0)
    if shared >= count:
        raise f.fail(f"num_kv_shared_layers {shared} must be below num_hidden_layers {count}")
    givers = _givers(f, types, count - shared) if shared else {}
    feeds = _gemma4_feeds(f, hidden)
    inputs = f.whole("hidden_size_per_layer_input", default=0, least=0)
    beside = (whole("per-layer inputs", 2 * hidden * inputs), *small("norms", hidden)) if inputs else ()
    layers = []
    for index, kind in enumerate(types):
        reads = givers[kind] if index >= count - shared else None
        local = kind == "sliding_attention"
        layers.append(
            build_layer(
                index,
                _gemma4_attention(f, hidden, window if local else None, own=reads is None),
                (*feeds[reads is not None], *beside),
                norms=4 * hidden,
                source=f"layer_types[{index}]" if f.given("layer_types") else "class default: every 6th layer full",
                rope="rope" if local else "partial rope",
                shares_with=reads,
            )
        )
    return Stack(tuple(layers), widest(f), extra=_inputs(f, hidden, inputs, count))


def _givers(f: Fields, types: list[str], first: int) -> dict[str, int]:
    """The last layer of each kind that keeps its own keys and values."""
    own = {kind: index for index, kind in enumerate(types[:first])}
    missing = [kind for kind in types[first:] if kind not in own]
    if missing:
        raise f.fail(f"num_kv_shared_layers leaves no {missing[0]} layer whose keys and values the others could share")
    return own


def _gemma4_attention(f: Fields, hidden: int, window: int | None, *, own: bool) -> Mixer:
    heads = f.whole("num_attention_heads")
    keys, dim = f.maybe_whole("num_key_value_heads") or heads, f.whole("head_dim")
    same = False
    if window is None:
        dim = f.whole("global_head_dim", default=512)
        same = f.flag("attention_k_eq_v")
        keys = (f.maybe_whole("num_global_key_value_heads") or keys) if same else keys
    if heads % keys:
        raise f.fail(f"num_attention_heads {heads} is not a multiple of its {keys} KV heads")
    bias = f.flag("attention_bias")
    mixer = attention(hidden, heads, keys, dim, window=window)
    matrices = hidden * dim * (2 * heads + keys * (2 - same) * own)
    extra = dim * (1 + own) + (dim * (heads + keys * (2 - same) * own) + hidden) * bias
    return replace(mixer, weights=(whole("attention", matrices), *small("attention", extra)))


def _gemma4_feeds(f: Fields, hidden: int) -> tuple[tuple[Weights, ...], tuple[Weights, ...]]:
    """What layers with keys of their own, and layers that share, do with each token."""
    width = f.whole("intermediate_size")
    wide = width * (2 if f.flag("use_double_wide_mlp") else 1)
    routed: tuple[Weights, ...] = ()
    if f.flag("enable_moe_block"):
        count = f.whole("num_experts")
        routed = (*experts(f), *small("router", hidden + count), *small("norms", 3 * hidden))
    return (*gated_mlp(hidden, width), *routed), (*gated_mlp(hidden, wide), *routed)


def _inputs(f: Fields, hidden: int, inputs: int, count: int) -> tuple[Weights, ...]:
    if not inputs:
        return ()
    table = f.whole("vocab_size_per_layer_input") * count * inputs
    return (
        Weights("embedding", table, table, linear=False, computes=False),
        whole("per-layer inputs", hidden * count * inputs),
        *small("norms", inputs),
    )
