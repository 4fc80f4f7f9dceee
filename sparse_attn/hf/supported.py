"""Which models can attend through patterns: the parts that `sparsify` needs, looked for before anything is changed."""

from __future__ import annotations

import inspect

from torch import nn
from transformers import PreTrainedModel

LAYER_KINDS = frozenset({"full_attention", "sliding_attention"})


def text_decoder(model: object) -> PreTrainedModel:
    """The part of a model that holds its causal attention layers: the model itself, or its text decoder.

    Raises:
        ValueError: not a transformers model.
        NotImplementedError: an architecture that patterns cannot drive; names what is missing.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"model must be a transformers model (PreTrainedModel), got {name}: unwrap it first, e.g. model.get_base_model()"
        )
    if model.config.is_encoder_decoder:
        raise NotImplementedError(f"{name} is an encoder-decoder model: only decoder-only text models are supported")
    decoder = model.get_decoder()
    if not isinstance(decoder, PreTrainedModel):
        raise NotImplementedError(f"{name} has no text decoder that transformers can name (get_decoder)")
    _check_config(name, decoder.config)
    return decoder


def attention_layers(decoder: PreTrainedModel) -> dict[int, nn.Module]:
    """The attention module of each layer, by layer number.

    Raises:
        NotImplementedError: a layer whose attention does not go through transformers' AttentionInterface, or that asks
            for what patterns do not support.
    """
    name = type(decoder).__name__
    layers: dict[int, nn.Module] = {}
    settable = decoder._supports_attention_backend and decoder._can_set_attn_implementation()
    for module in decoder.modules() if settable else ():
        if not _dispatches(module):
            continue
        index = getattr(module, "layer_idx", None)
        if index is None or index in layers:
            raise NotImplementedError(
                f"{name}: {type(module).__name__} does not stand for one numbered layer (cross attention is not supported)"
            )
        layers[index] = module
    missing = [index for index in range(decoder.config.num_hidden_layers) if index not in layers]
    if missing:
        raise NotImplementedError(
            f"{name}: attention of layers {', '.join(map(str, missing))} does not go through transformers' "
            "AttentionInterface, which patterns plug into"
        )
    for index, module in layers.items():
        _check_layer(f"{name}, layer {index}", module)
    return dict(sorted(layers.items()))


def _dispatches(module: nn.Module) -> bool:
    """Whether a module looks its attention function up where `AttentionInterface.register` puts it."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _check_config(name: str, config: object) -> None:
    kinds = set(getattr(config, "layer_types", None) or ()) - LAYER_KINDS
    if kinds:
        raise NotImplementedError(
            f"{name} has layers of kind {', '.join(sorted(kinds))}: only full and sliding-window attention are supported"
        )
    if getattr(config, "kv_lora_rank", None):
        raise NotImplementedError(f"{name} has latent attention (MLA, kv_lora_rank): it is not supported")
    if getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", None):
        raise NotImplementedError(f"{name} is configured for bidirectional attention: patterns in models are causal")
    if getattr(config, "attn_logit_softcapping", None):
        raise NotImplementedError(
            f"{name} soft-caps its attention logits (attn_logit_softcapping={config.attn_logit_softcapping}): it is not "  # type: ignore[attr-defined]
            "supported"
        )
    if getattr(config, "output_attentions", False):
        raise NotImplementedError(f"{name} returns attention weights: set config.output_attentions=False")


def _check_layer(where: str, module: nn.Module) -> None:
    if getattr(module, "is_causal", True) is False:
        raise NotImplementedError(f"{where}: attention is bidirectional; patterns in models are causal")
    if getattr(module, "sinks", None) is not None:
        raise NotImplementedError(f"{where}: attention has learned sinks, which are not supported")
