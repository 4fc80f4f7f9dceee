"""What transformers itself builds for a config: layer types, parameters on the meta device, and a real cache's bytes."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

KIND_OF = {
    "full_attention": {"full", "latent"},
    "sliding_attention": {"sliding"},
    "chunked_attention": {"chunked"},
    "linear_attention": {"linear"},
    "conv": {"linear"},
    "hybrid": {"hybrid"},
    "dummy": {"none"},
    "indexed_attention": {"indexed"},
    "compressed_sparse_attention": {"indexed"},
    "heavily_compressed_attention": {"hybrid"},
}

#: Language models that transformers builds inside a model for images only, without a head of their own.
HEADLESS = ("mistral4", "qwen3_vl_text", "qwen3_vl_moe_text")


def config_of(config: dict, model_type: str | None = None):
    """The installed library's config object; keys of our own (with "_" in front) left out."""
    plain = {key: value for key, value in copy.deepcopy(config).items() if not key.startswith("_")}
    return CONFIG_MAPPING[model_type or plain["model_type"]].from_dict(plain)


def layer_types(config) -> list[str]:
    """As `DynamicCache` would see them."""
    return get_layer_types_and_kwargs(config.get_text_config(decoder=True))[0]


def build(config, device: str = "meta"):
    """A causal model, or the encoder or its masked head where there is none."""
    masked = "Masked" in " ".join(config.architectures or [])
    kind = AutoModelForCausalLM
    if config.model_type in ("longformer", "big_bird", *HEADLESS):
        kind = AutoModelForMaskedLM if masked else AutoModel
    with torch.device(device):
        return kind.from_config(config)


def parameters(config) -> int:
    """Of the model on the meta device; tied ones once. Language models of the HEADLESS get their head added."""
    head = config.vocab_size * config.hidden_size if config.model_type in HEADLESS else 0
    return sum(one.numel() for one in build(config).parameters()) + head


def cache_bytes(model, tokens: int, vocabulary: int) -> int:
    """Bytes of every tensor that one forward pass over `tokens` tokens leaves behind for the next token."""
    ids = torch.arange(tokens)[None] % (vocabulary - 2) + 1
    with torch.no_grad():
        out = model(ids, use_cache=True)
    for name in ("past_key_values", "cache_params", "state"):
        if getattr(out, name, None) is not None:
            return _bytes(getattr(out, name)) + _module_state(model)
    return _module_state(model)


def _bytes(kept) -> int:
    found: dict = {}
    for layer in getattr(kept, "layers", []):
        own: dict = {}
        _collect({k: v for k, v in vars(layer).items() if not k.startswith("_")}, own)
        found |= own
    if hasattr(kept, "layers"):
        _collect(getattr(kept, "linear_cache", []), found)  # MiniMax's
    else:
        _collect(kept, found)
    return sum(one.numel() * one.element_size() for one in found.values())


def _collect(value, found: dict) -> None:
    if isinstance(value, torch.Tensor):
        if value.numel():
            found[value.data_ptr(), tuple(value.shape), id(value) if value.device.type == "meta" else 0] = value
    elif isinstance(value, dict):
        for one in value.values():
            _collect(one, found)
    elif isinstance(value, list | tuple):
        for one in value:
            _collect(one, found)


def _module_state(model) -> int:
    """RecurrentGemma keeps its states on its modules, and the other layers' keys nowhere that can be reached."""
    found: dict = {}
    for module in model.modules():
        _collect({k: getattr(module, k, None) for k in ("conv1d_state", "recurrent_states")}, found)
    return sum(one.numel() * one.element_size() for one in found.values())
