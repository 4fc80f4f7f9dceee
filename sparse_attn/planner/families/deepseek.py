"""DeepSeek V2, V3, V3.2; Kimi K2; GLM-4.7-Flash, GLM-5: latent attention, with or without an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..blocks import Mixer, build_layer, gated_mlp, small
from ..fields import Fields
from ..latent import latent_attention, read_latent, with_index
from ..records import Inert, Weights
from .decoder import experts, widest
from .stack import Stack, hidden_size, layer_count, read_layer_types


def deepseek_v3(f: Fields) -> Stack:
    """V2, V3, R1, Kimi K2: every layer latent; the first `first_k_dense_replace` layers have a dense MLP."""
    mixer = latent_attention(hidden_size(f), read_latent(f))
    return _stack(f, lambda index: mixer, "kv_lora_rank")


def deepseek_v32(f: Fields) -> Stack:
    """V3.2: every layer latent behind an index that picks `index_topk` keys."""
    plain = latent_attention(hidden_size(f), read_latent(f))
    mixer = _indexed(f, plain)
    types = read_layer_types(f, ("indexed_attention", "deepseek_sparse_attention", "full_attention"))
    picks = [types is None or kind != "full_attention" for kind in types or [""] * layer_count(f)]
    return _stack(f, lambda index: mixer if picks[index] else plain, "index_topk")


def glm_moe_dsa(f: Fields) -> Stack:
    """GLM-5: as V3.2; a layer may share an earlier layer's choice (`indexer_types`, `index_topk_pattern`, `_freq`)."""
    plain = latent_attention(hidden_size(f), read_latent(f))
    own, shared = _indexed(f, plain), _indexed(f, plain, own=False)
    types = indexer_types(f)
    return _stack(f, lambda index: own if types[index] == "full" else shared, "index_topk")


def glm4_moe_lite(f: Fields) -> Stack:
    """GLM-4.7-Flash: every layer latent; `mlp_layer_types`, by default one dense layer."""
    mixer = latent_attention(hidden_size(f), read_latent(f))
    return _stack(f, lambda index: mixer, "kv_lora_rank", first_dense=1)


def indexer_types(f: Fields) -> list[str]:
    """ "full" (runs an index) or "shared" for each layer."""
    count = layer_count(f)
    given = f.listed("indexer_types", length=count)
    if given is not None:
        return given
    pattern = f.value("index_topk_pattern")
    if pattern is not None:
        names = {"F": "full", "S": "shared", "full": "full", "shared": "shared"}
        if len(pattern) != count or any(one not in names for one in pattern):
            raise f.fail(f"index_topk_pattern must have one F or S for each of the {count} layers, got {pattern!r}")
        return [names[one] for one in pattern]
    every, offset = f.whole("index_topk_freq", default=1), f.whole("index_skip_topk_offset", default=2, least=0)
    return ["full" if max(index - offset + 1, 0) % every == 0 else "shared" for index in range(count)]


def sparse_after(f: Fields, first_dense: int | None = None) -> Callable[[int], Sequence[Weights]]:
    """`mlp_layer_types`; without it dense below `first_k_dense_replace` (or `first_dense`, if the class reads no such field).

    `moe_layer_freq` above 1 would leave layers dense in between, but the classes of transformers do not read it; only
    V2's reads `mlp_bias`.
    """
    count = layer_count(f)
    types = f.listed("mlp_layer_types", length=count)
    first = first_dense
    if first is None:
        first = f.whole("first_k_dense_replace", default=0, least=0)
    hidden = hidden_size(f)
    shared = (f.maybe_whole("n_shared_experts", "num_shared_experts", least=0) or 0) * f.whole("moe_intermediate_size")
    bias = f.family == "deepseek_v2" and f.flag("mlp_bias")
    routed = (*experts(f, shared=shared), *small("shared experts", (2 * shared + hidden) * bias * bool(shared)))
    dense = gated_mlp(hidden, f.whole("intermediate_size"), bias=bias)

    def feed(index: int) -> Sequence[Weights]:
        sparse = types[index] == "sparse" if types else index >= first
        return routed if sparse else dense

    return feed


def unused_head_dim(f: Fields) -> list[Inert]:
    """`head_dim` and `num_key_value_heads`, which say nothing about what MLA keeps."""
    source = "modeling_deepseek_v3.py: the cache holds kv_lora_rank + qk_rope_head_dim numbers"
    reasons = {
        "head_dim": "keys are qk_nope_head_dim + qk_rope_head_dim wide and the cache keeps a latent: this is no width of either",
        "num_key_value_heads": "latent attention keeps one latent for all heads, so it makes the cache no larger",
    }
    return [Inert(name, str(f.config[name]), why, source) for name, why in reasons.items() if name in f.config]


def _indexed(f: Fields, plain: Mixer, own: bool = True) -> Mixer:
    return with_index(
        plain,
        hidden_size(f),
        rank=f.whole("q_lora_rank"),
        heads=f.whole("index_n_heads"),
        dim=f.whole("index_head_dim"),
        top=f.whole("index_topk"),
        own=own,
    )


def _stack(f: Fields, mixer: Callable[[int], Mixer], source: str, first_dense: int | None = None) -> Stack:
    feed = sparse_after(f, first_dense)
    hidden = hidden_size(f)
    layers = tuple(
        build_layer(index, mixer(index), feed(index), norms=2 * hidden, source=source, rope="rope")
        for index in range(layer_count(f))
    )
    notes = []
    if f.maybe_whole("num_nextn_predict_layers", "num_mtp_layers", least=0):
        notes.append("the checkpoint holds a layer for multi-token prediction besides, which is not counted here")
    return Stack(layers, widest(f), inert=tuple(unused_head_dim(f)), notes=tuple(notes))
