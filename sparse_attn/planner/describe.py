"""A config becomes a `Model`: find the text model's part of it, apply the family's rule, add what stands around it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .blocks import small
from .families import MODEL_TYPES, RULES, SAME_AS, llama
from .families.stack import Stack
from .fields import Fields, class_defaults
from .quantization import read_dtype, read_quantization
from .records import Inert, Layer, Model, Rope, Weights
from .rope import read_context, read_rope

_NESTED = ("text_config", "language_config", "llm_config", "thinker_config", "decoder")
_SETTLING = (
    "num_hidden_layers",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "full_attention_interval",
    "attention_chunk_size",
    "num_key_value_heads",
    "head_dim",
    "kv_lora_rank",
)


def describe(config: Mapping[str, Any], *, assume: str | None = None) -> Model:
    """Resolve a config to its layers, as transformers' own classes would.

    Args:
        config: What `read_config` gives: the JSON object, nested or not. Keys that begin with "_" are
            ignored, but for those that `read_config` adds.
        assume: "full": a `model_type` without a rule is taken for a decoder of full-attention layers. None: it is an error.

    Raises:
        ValueError: an unknown `model_type`, a missing or contradictory field: one sentence that names it.

    >>> config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    >>> [layer.kind for layer in describe({**config, "num_key_value_heads": 2}).layers]
    ['full', 'full']
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be a JSON object, got {type(config).__name__}")
    if assume not in (None, "full"):
        raise ValueError(f"assume must be 'full' or None, got {assume!r}")
    outer_type = config.get("model_type")
    if outer_type is not None and not isinstance(outer_type, str):
        raise ValueError(f"config.json: model_type must be a text, got {outer_type!r}")
    text = _text_config(config)
    family = _family(text, outer_type)
    rule = RULES.get(family or "")
    notes: list[str] = []
    if rule is None and assume == "full":
        rule = llama.assumed_full
        notes.append(f"model_type {family!r} has no rule: every layer was assumed to be full attention")
    if rule is None:
        raise ValueError(_unknown(family, text))
    fields = Fields({key: value for key, value in text.items() if not key.startswith("_")}, family or "unknown")
    stack = rule(fields)
    known = class_defaults().get(fields.family, {"theta": 10000.0})
    rope = read_rope(fields, known.get("theta"), known.get("local_theta"))
    advertised = read_context(fields)
    weights = _outside(stack, fields, tied=_tied(config, text, fields) if stack.tied is None else stack.tied)
    model = Model(
        model_type=str(outer_type or family or "unknown"),
        family=fields.family,
        layers=tuple(_with_theta(layer, rope) for layer in stack.layers),
        hidden_size=fields.required("hidden_size"),
        vocab_size=fields.whole("vocab_size"),
        intermediate_size=stack.width,
        weights=weights,
        dtype=read_dtype(config, text),
        quantization=read_quantization(config, text),
        advertised_context=advertised,
        trained_context=min(rope.original_context or advertised, advertised) if advertised else rope.original_context,
        rope=rope,
        causal=stack.causal,
        inert=stack.inert,
        assumed=fields.assumed,
        state_dtype=_state_dtype(text),
        stored_bytes=_stored(config, "_stored_bytes"),
    )
    notes += [*stack.notes, *_beside(config), *_other_count(config, model)]
    return replace(model, notes=tuple(notes), inert=(*model.inert, *_wide_windows(model)))


def _outside(stack: Stack, f: Fields, *, tied: bool) -> tuple[Weights, ...]:
    """Embedding, what the family has outside its layers, head and final norm. A tied head is the embedding."""
    hidden = f.required("hidden_size")
    table = f.whole("vocab_size") * hidden
    norm = stack.final_norm * hidden
    return (
        Weights("embedding", table, table, linear=False, computes=tied),
        *stack.extra,
        *(() if tied else (Weights("head", table, table, linear=False),)),
        *small("norms", norm),
    )


def _wide_windows(model: Model) -> list[Inert]:
    """A window that is as long as the context cuts nothing within it (Phi-3's)."""
    context = model.advertised_context
    wide = {layer.window for layer in model.layers if layer.kind == "sliding" and layer.window}
    if context is None or not wide or min(wide) < context:
        return []
    why = f"no shorter than the advertised context of {context:,}, so it cuts nothing within it"
    return [Inert("sliding_window", str(min(wide)), why, "max_position_embeddings")]


def _other_count(config: Mapping[str, Any], model: Model) -> list[str]:
    """A sentence if the weight files hold another number of parameters."""
    counted, stored = model.parameters.total, _stored(config, "_stored_parameters")
    if stored is None or abs(stored - counted) <= counted / 1000:
        return []
    return [f"the weight files hold {stored:,} parameters, the config amounts to {counted:,}"]


def _beside(config: Mapping[str, Any]) -> list[str]:
    """A sentence if the config names parts beside the language model, which alone is counted."""
    found = [
        name.removesuffix("_config") for name in ("vision_config", "audio_config", "img_processor") if config.get(name)
    ]
    if not found:
        return []
    return [f"only the language model is counted: the config names a part for {' and '.join(found)} besides"]


def _family(text: Mapping[str, Any], outer: str | None) -> str | None:
    """The `model_type` whose rule applies: the text model's own, or what the outer one implies."""
    given = text.get("model_type") or outer
    if given is None:
        return None
    if not isinstance(given, str):
        raise ValueError(f"config.json: model_type must be a text, got {given!r}")
    return SAME_AS.get(given, given)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in _NESTED:
        inner = config.get(name)
        outside = name != "text_config" and "num_hidden_layers" in config and "hidden_size" in config
        if isinstance(inner, Mapping) and inner and not outside:
            return _text_config(inner)
        if inner is not None and name == "text_config" and not isinstance(inner, Mapping):
            raise ValueError(f"config.json: text_config must be an object, got {type(inner).__name__}")
    return config


def _tied(config: Mapping[str, Any], text: Mapping[str, Any], fields: Fields) -> bool:
    """Whether the head is the embedding: the outer config decides, then the text's, then the classes' defaults."""
    for source in (config, text):
        if isinstance(source.get("tie_word_embeddings"), bool):
            return bool(source["tie_word_embeddings"])
    if text is not config:
        outer = class_defaults().get(str(config.get("model_type")), {}).get("fields", {}).get("tie_word_embeddings")
        if isinstance(outer, bool):
            return outer
    return fields.flag("tie_word_embeddings")


def _state_dtype(text: Mapping[str, Any]) -> str | None:
    """What the config asks for recurrent states; "auto" is nothing."""
    for name in ("mamba_ssm_dtype", "mamba_ssm_cache_dtype"):
        value = text.get(name)
        if isinstance(value, str) and value != "auto":
            return value.removeprefix("torch.")
    return None


def _stored(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _with_theta(layer: Layer, rope: Rope) -> Layer:
    if not layer.heads or layer.rope == "none":
        return layer
    local = rope.local_theta if layer.kind == "sliding" and rope.local_theta is not None else rope.theta
    return replace(layer, rope_theta=local)


def _unknown(family: str | None, text: Mapping[str, Any]) -> str:
    if family is None:
        return (
            "config.json has no model_type, expected the family's name, "
            f"e.g. {', '.join(('llama', 'qwen3', 'gemma3'))}; --assume full takes every layer for full attention"
        )
    near = difflib.get_close_matches(family, MODEL_TYPES, n=3, cutoff=0.7)
    there = [name for name in _SETTLING if text.get(name) is not None]
    missing = [name for name in _SETTLING if text.get(name) is None]
    return (
        f"model_type {family!r} has no rule here"
        + (f" (near: {', '.join(near)})" if near else "")
        + f", and what its layers see is not guessed. These fields would settle it, if the class reads them: "
        f"{', '.join(there) or 'none'} (given), {', '.join(missing) or 'none'} (not given). "
        "--assume full takes every layer for full attention"
    )
