"""DeepSeek-V4: a window on every layer, and beside it summaries of blocks of tokens, all of them or the best few.

One head's vector serves as key and value. "Heavily compressed" layers see a summary of every 128 tokens,
"compressed sparse" layers an index's choice among summaries of every 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..blocks import Mixer, build_layer, moe, small, whole
from ..fields import Fields, check_whole
from ..records import Memory, Scores, Weights
from .stack import Stack, hidden_size, layer_count

_SPARSE, _HEAVY, _WINDOW = "compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention"
_RATES = {_SPARSE: 4, _HEAVY: 128}
_RATIOS = {0: _WINDOW, 4: _SPARSE, 128: _HEAVY}


def deepseek_v4(f: Fields) -> Stack:
    """`layer_types`, or `compress_ratios` (0, 4, 128); else two heavily compressed layers, then sparse and heavy in turn."""
    types, source = _types(f)
    hidden, count = hidden_size(f), layer_count(f)
    mixers = {kind: _mixer(f, kind) for kind in set(types)}
    width, shared = f.whole("moe_intermediate_size"), f.whole("n_shared_experts", least=0)
    experts, chosen = f.whole("n_routed_experts"), f.whole("num_experts_per_tok")
    parts = moe(hidden, width, experts, chosen, shared=shared * width)
    parts += small("shared experts", (2 * shared * width + hidden) * f.flag("mlp_bias"))
    streams = f.whole("hc_mult")
    mixing = (2 + streams) * streams
    parts += (
        whole("residual streams", 2 * mixing * streams * hidden, linear=False),
        *small("residual streams", 2 * (mixing + 3)),
    )
    layers = tuple(
        build_layer(index, mixers[kind], parts, norms=2 * hidden, source=source, rope="partial rope")
        for index, kind in enumerate(types[:count])
    )
    top = (whole("residual streams", streams * streams * hidden, linear=False), *small("residual streams", streams + 1))
    return Stack(layers, (chosen + shared) * width, extra=top)


def _types(f: Fields) -> tuple[list[str], str]:
    count = layer_count(f)
    types, source = f.listed("layer_types"), "layer_types"
    if types is None:
        ratios = f.listed("compress_ratios")
        if ratios is not None:
            bad = [one for one in ratios if one not in _RATIOS]
            if bad:
                raise f.fail(f"compress_ratios has {bad[0]!r}, expected 0, 4 or 128")
            types, source = [_RATIOS[one] for one in ratios], "compress_ratios"
    if types is None:
        types = [_HEAVY] * min(count, 2) + [_SPARSE if index % 2 else _HEAVY for index in range(max(count - 2, 0))]
        source = "class default"
    if len(types) < count:
        raise f.fail(f"{source} has {len(types)} entries, but num_hidden_layers is {count}")
    bad = [kind for kind in types if kind not in (_SPARSE, _HEAVY, _WINDOW)]
    if bad:
        raise f.fail(f"{source} has {bad[0]!r}, expected one of {_WINDOW}, {_SPARSE}, {_HEAVY}")
    return types[:count], source


def _rate(f: Fields, kind: str) -> int:
    given = f.value("compress_rates", default=None) or {}
    if not isinstance(given, Mapping):
        raise f.fail(f"compress_rates must be an object, got {given!r}")
    legacy = f.maybe_whole("compress_rate_csa" if kind == _SPARSE else "compress_rate_hca")
    return legacy or check_whole(f"compress_rates.{kind}", given.get(kind, _RATES[kind]), 1, f.family)


def _mixer(f: Fields, kind: str) -> Mixer:
    hidden, heads, dim = hidden_size(f), f.whole("num_attention_heads"), f.whole("head_dim")
    rank, window = f.whole("q_lora_rank"), f.whole("sliding_window")
    groups, out = f.whole("o_groups"), f.whole("o_lora_rank")
    if heads * dim % groups:
        raise f.fail(f"o_groups {groups} does not divide num_attention_heads {heads} x head_dim {dim}")
    matrices = rank * (hidden + heads * dim) + hidden * dim + heads * dim * out + groups * out * hidden
    base = Mixer(
        kind="sliding",
        window=window,
        heads=heads,
        kv_heads=1,
        head_dim=dim,
        value_dim=dim,
        memory=(Memory("keys and values", dim, limit=window, ring="window"),),
        scores=(Scores("window", 4 * heads * dim, "window", window),),
        weights=(whole("attention", matrices), *small("attention", rank + dim + heads)),
    )
    if kind == _WINDOW:
        return replace(base, memory=tuple(replace(one, twice=True) for one in base.memory))
    return _heavy(f, base, hidden, dim) if kind == _HEAVY else _sparse(f, base, hidden, dim, rank)


def _heavy(f: Fields, base: Mixer, hidden: int, dim: int) -> Mixer:
    rate = _rate(f, _HEAVY)
    return replace(
        base,
        kind="hybrid",
        window=None,
        memory=(
            *base.memory,
            Memory("summaries", dim, every=rate),
            Memory("tokens to be summarised", 2 * dim, limit=rate - 1, remainder=rate, precision="model"),
        ),
        scores=(*base.scores, Scores("summaries", 4 * base.heads * dim, "summaries", rate)),
        weights=(*base.weights, whole("attention", 2 * hidden * dim), *small("attention", rate * dim + dim)),
    )


def _sparse(f: Fields, base: Mixer, hidden: int, dim: int, rank: int) -> Mixer:
    rate, top = _rate(f, _SPARSE), f.whole("index_topk")
    index_heads, index_dim = f.whole("index_n_heads"), f.whole("index_head_dim")
    both = dim + index_dim
    matrices = 4 * hidden * both + rank * index_heads * index_dim + hidden * index_heads
    weights: tuple[Weights, ...] = (whole("attention", matrices), *small("attention", 2 * rate * both + both))
    return replace(
        base,
        kind="indexed",
        window=None,
        memory=(
            *base.memory,
            Memory("summaries", dim, every=rate, read=top),
            Memory("index keys", index_dim, every=rate),
            Memory("tokens to be summarised", 4 * both, limit=rate - 1, remainder=rate, precision="model"),
            Memory("last block", 2 * rate * both, False, precision="model"),
        ),
        scores=(
            *base.scores,
            Scores("index", 2 * index_heads * index_dim, "summaries", rate),
            Scores("summaries", 4 * base.heads * dim, "summaries", rate, top),
        ),
        weights=base.weights + weights,
    )
