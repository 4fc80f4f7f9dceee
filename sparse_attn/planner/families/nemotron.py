"""Nemotron-H, Nemotron Nano 2 and 3: one block a layer, Mamba-2, attention, an MLP or experts."""

from __future__ import annotations

from ..blocks import NOTHING, Mixer, attention, build_layer, moe, plain_mlp, small, whole
from ..fields import Fields
from ..records import Weights
from ..recurrences import mamba2 as mamba2_mixer
from .stack import LEGACY_TYPES, Stack, hidden_size, read_heads


def nemotron_h(f: Fields) -> Stack:
    """One block a layer: M Mamba-2, * attention, - MLP, E experts (`hybrid_override_pattern` or `layers_block_type`).

    Attention has no RoPE. `num_hidden_layers` must agree with the pattern. The class has a head of its own, whatever
    `tie_word_embeddings` says.
    """
    hidden = hidden_size(f)
    types, source = _nemotron_types(f)
    heads = read_heads(f, hybrid=True)
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
    return Stack(layers, width, tied=False)


def _nemotron_types(f: Fields) -> tuple[list[str], str]:
    letters = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
    count = f.maybe_whole("num_hidden_layers")
    listed = f.listed("layers_block_type")
    pattern = f.value("hybrid_override_pattern")
    if listed is not None:
        types = [LEGACY_TYPES.get(str(kind), str(kind)) for kind in listed]
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
        parts += (whole("mlp", 2 * hidden * latent), *small("mlp", (hidden + latent) * f.flag("mlp_bias")))
    return parts
