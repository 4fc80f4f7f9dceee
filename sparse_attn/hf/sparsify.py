"""Make a transformers model attend through patterns, and undo it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from ..ops import attention
from ..patterns import Full, Pattern
from ..patterns.covering import auto
from .attention_function import LayerPattern, sparse_attn_forward
from .mask_function import sparse_attn_mask
from .prefill_choice import PairCount, covering_choice
from .supported import attention_layers, text_decoder

NAME = "sparse_attn"  # of the attention implementation, and of the attribute that a layer carries its pattern in
_UNDO = "sparse_attn_undo"

_EXPECTED = (
    "pattern must be a Pattern, a mapping from layer number to Pattern, a function of the layer number, or 'auto'"
)

Patterns = Pattern | Mapping[int, Pattern] | Callable[[int], Pattern | None]


@dataclass
class _Undo:
    """What `restore` puts back: the model's own config objects, in the place of the private copies."""

    configs: list[tuple[Any, Any]]  # (private copy, original)
    implementation: str


def sparsify(
    model: PreTrainedModel, pattern: Patterns | str, *, coverage: float | None = None, implementation: str | None = None
) -> PreTrainedModel:
    """Make a causal language model attend through a pattern: prefill, cached decoding and training.

    The model is changed in place: weights stay as they are, and `restore` undoes it. Its own sliding windows stay in
    force: layers with a window W attend through ``pattern.within(Window(W))``. Padding may stand left or right; a
    pattern counts positions within the real tokens of each row, so that sinks are the row's own first tokens. A second
    call replaces the patterns.

    Args:
        model: A decoder-only transformers model whose attention goes through `AttentionInterface` (Llama, Mistral,
            Qwen3, Gemma-3 text models and their like); of a multimodal one only the text decoder is changed.
        pattern: One pattern for all layers; or a mapping from layer numbers, where layers that are not named stay
            dense; or a function from layer number to a pattern, or None for dense. "auto": the first and last keys, and
            for each layer, head and input the key blocks that cover the rest (`CoverBlocks`), without training. Such a
            pattern chooses in prefill, of 64 new tokens and more and over more than 512 keys; shorter prompts and decode
            steps attend densely. A tile of 64 tokens chooses together and so reads up to 63 later tokens, for the choice
            alone; gradients are refused. `spent_pairs` tells what it cost.
        coverage: With "auto": the share of the estimated attention mass to keep, above 0, at most 1; 0.94 if None.
        implementation: Passed on to `sparse_attn.attention`; None chooses.

    Returns:
        The model itself.

    Raises:
        ValueError: not a transformers model; a layer number outside the model; something that is not a pattern; a coverage
            outside (0, 1], or without "auto"; an unknown implementation.
        NotImplementedError: the model needs what patterns do not support, names it; patterns with `Anchors`; or the
            implementation does not serve the pattern, or the model's device, dtype or head dim.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, hidden_size=64, num_attention_heads=4, vocab_size=99))
    >>> model = sparsify(model, {0: Window(512) | Sinks(4), 1: Window(512)})  # layers 2 and 3 stay dense
    >>> model = sparsify(model, lambda layer: None if layer == 3 else Window(512))
    >>> model = sparsify(model, "auto", coverage=0.9)
    >>> model = restore(model)
    """
    if isinstance(pattern, str):
        pattern = _by_name(pattern, coverage)
    elif not (isinstance(pattern, Pattern | Mapping) or callable(pattern)):
        raise ValueError(f"{_EXPECTED}, got {pattern!r}")
    elif coverage is not None:
        raise ValueError(
            f"coverage is for the pattern 'auto', got {coverage!r} with {pattern!r}: use CoverBlocks(coverage)"
        )
    decoder = text_decoder(model)
    layers = attention_layers(decoder)
    patterns = layer_patterns(pattern, list(layers))
    _try_patterns(decoder, set(patterns.values()), implementation)

    AttentionInterface.register(NAME, sparse_attn_forward)
    AttentionMaskInterface.register(NAME, sparse_attn_mask)
    if not hasattr(decoder, _UNDO):
        undo = _Undo(_give_private_config(model), decoder.config._attn_implementation)
        setattr(decoder, _UNDO, undo)
    for index, layer in layers.items():
        spent = None if covering_choice(patterns[index]) is None else PairCount()
        setattr(layer, NAME, LayerPattern(patterns[index], implementation, spent))
    decoder.set_attn_implementation(NAME)
    return model


def _by_name(name: str, coverage: float | None) -> Pattern:
    if name != "auto":
        raise ValueError(f"{_EXPECTED}, got {name!r}; text goes through sparse_attn.parse")
    return auto() if coverage is None else auto(coverage)


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `sparsify`: the model attends as before, and nothing is left attached. A model never changed stays as it is.

    Returns:
        The model itself.
    """
    decoder = next((module for module in model.modules() if hasattr(module, _UNDO)), None)
    if decoder is None:
        return model
    undo = vars(decoder).pop(_UNDO)
    decoder.set_attn_implementation(undo.implementation)
    for private, original in undo.configs:
        _carry_over(private, original)
    originals = {id(private): original for private, original in undo.configs}
    for module in model.modules():
        vars(module).pop(NAME, None)
        if (config := getattr(module, "config", None)) is not None:
            module.config = originals.get(id(config), config)
    return model


def layer_patterns(pattern: Patterns, layers: list[int]) -> dict[int, Pattern]:
    """The pattern of every layer; `Full()` where none is named.

    Raises:
        ValueError: a layer number outside the model, or something that is not a pattern.
        NotImplementedError: a pattern with `Anchors`.

    >>> layer_patterns({1: Window(8)}, [0, 1])
    {0: full(), 1: window(8)}
    """
    given: dict[Any, Any]
    if isinstance(pattern, Pattern):
        given = dict.fromkeys(layers, pattern)
    elif isinstance(pattern, Mapping):
        given = dict(pattern)
    elif callable(pattern):
        given = {layer: chosen for layer in layers if (chosen := pattern(layer)) is not None}
    else:
        raise ValueError(
            f"pattern must be a Pattern, a mapping from layer number to Pattern, or a function of the layer number, got "
            f"{pattern!r}"
        )
    for layer, chosen in given.items():
        if isinstance(layer, bool) or layer not in layers:
            raise ValueError(f"pattern names layer {layer!r}, but the model's layers are {layers[0]} to {layers[-1]}")
        if not isinstance(chosen, Pattern):
            raise ValueError(f"pattern for layer {layer} must be a Pattern such as Window(2048), got {chosen!r}")
        if chosen.extra_keys:
            raise NotImplementedError(
                f"pattern for layer {layer} has anchors, whose keys a model must have learned: {chosen!r}"
            )
    return {layer: given.get(layer, Full()) for layer in layers}


def _try_patterns(decoder: PreTrainedModel, patterns: set[Pattern], implementation: str | None) -> None:
    """One token of the model's heads, dtype and device through each pattern: what is not served fails here, by name."""
    if decoder.device.type == "meta":
        return
    config = decoder.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    q, k = (
        torch.zeros(1, 1, n, head_dim, dtype=decoder.dtype, device=decoder.device)
        for n in (heads, getattr(config, "num_key_value_heads", None) or heads)
    )
    for pattern in patterns:
        attention(q, k, k, pattern.example(0), implementation=implementation)


def _give_private_config(model: PreTrainedModel) -> list[tuple[Any, Any]]:
    """Copy the model's config, so that another model built from the same config object keeps its attention.

    Returns each private copy, sub-configs included, with its original.
    """
    memo: dict[int, Any] = {}
    copy.deepcopy(model.config, memo)
    pairs = {}
    for module in _modules_with_config(model):
        private = memo.get(id(module.config))
        if private is None:  # a part with a config of its own
            private = copy.deepcopy(module.config, memo)
        pairs[id(private)] = (private, module.config)
        module.config = private
    return list(pairs.values())


def _carry_over(private: Any, original: Any) -> None:
    """Settings that were changed while the model was sparse stay changed."""
    for name, value in vars(private).items():
        if name != "_attn_implementation_internal" and not isinstance(value, PreTrainedConfig):
            vars(original)[name] = value


def _modules_with_config(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if getattr(module, "config", None) is not None]
