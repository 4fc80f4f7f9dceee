"""A GGUF file's metadata as a config: llama.cpp's names become the fields that the families' rules read."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from .gguf_header import GgufHeader, read_gguf_header

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

#: llama.cpp's `general.architecture` -> model_type. Source: llama.cpp, gguf-py/gguf/constants.py (MODEL_ARCH_NAMES).
_TYPES = {
    "llama": "llama",
    "llama4": "llama4_text",
    "mistral3": "ministral3",
    "qwen2": "qwen2",
    "qwen2vl": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi2": "phi",
    "phi3": "phi3",
    "phimoe": "phimoe",
    "command-r": "cohere",
    "cohere2": "cohere2",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "smollm3": "smollm3",
    "gpt-oss": "gpt_oss",
    "glm4": "glm4",
    "glm4moe": "glm4_moe",
    "deepseek2": "deepseek_v3",
    "minimax-m2": "minimax_m2",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "jamba": "jamba",
    "falcon-h1": "falcon_h1",
    "granitehybrid": "granitemoehybrid",
    "nemotron_h": "nemotron_h",
    "nemotron_h_moe": "nemotron_h",
    "lfm2": "lfm2",
}

#: Keys under the architecture's own prefix -> config fields.
_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.chunk_size": "attention_chunk_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
    "rope.freq_base": "rope_theta",
    "full_attention_interval": "full_attention_interval",
    "vocab_size": "vocab_size",
}


def read_gguf_config(path: Path) -> dict[str, Any]:
    """The config that a GGUF file's header amounts to, with `_stored_bytes` and the counts of its tensors.

    Raises:
        ValueError: a corrupt file (`read_gguf_header`), or no or an unknown `general.architecture`.
    """
    header, whole = _read_parts(path)
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ValueError(f"{path}: general.architecture is missing, expected llama.cpp's name of the family")
    get = {key.removeprefix(f"{name}."): value for key, value in header.metadata.items()}
    config: dict[str, Any] = {"model_type": _TYPES.get(name, name)}
    for key, field in _FIELDS.items():
        if get.get(key) is not None:
            config[field] = get[key]
    config.setdefault("vocab_size", header.metadata.get("tokenizer.ggml.tokens#"))
    names = {tensor.name for tensor in header.tensors}
    if whole:
        config["tie_word_embeddings"] = bool(names) and "output.weight" not in names
    ahead = get.get("nextn_predict_layers")  # layers for multi-token prediction are counted among the blocks
    if isinstance(ahead, int) and isinstance(config.get("num_hidden_layers"), int):
        config["num_hidden_layers"] -= ahead
    _rope(config, get)
    _biases(config, names)
    _lists(config, get)
    _by_family(config, get, name)
    config |= _weights(header, whole)
    return {key: value for key, value in config.items() if value is not None}


def _rope(config: dict[str, Any], get: dict[str, Any]) -> None:
    kind = get.get("rope.scaling.type")
    if isinstance(kind, str) and kind != "none":
        config["rope_scaling"] = {
            "rope_type": kind,
            "factor": get.get("rope.scaling.factor", 1.0),
            "original_max_position_embeddings": get.get("rope.scaling.original_context_length"),
        }


def _biases(config: dict[str, Any], names: set[str]) -> None:
    """Whether tensors of biases are there says more than any key."""
    if names:
        config["attention_bias"] = any(name.endswith("attn_q.bias") for name in names)
        config["qkv_bias"] = config["attention_bias"]
        config["use_qk_norm"] = any(name.endswith("attn_q_norm.weight") for name in names)


def _lists(config: dict[str, Any], get: dict[str, Any]) -> None:
    """A key may hold one value a layer. KV heads of 0 mark layers without attention; otherwise one value must do."""
    for key, field in _FIELDS.items():
        value = get.get(key)
        if not isinstance(value, list):
            continue
        used = sorted({one for one in value if one})
        if field == "num_key_value_heads":
            config["_kv_heads"] = value
        if len(used) > 1 and field != "intermediate_size":
            raise ValueError(f"GGUF: {key} differs between layers ({used}), which no rule here reads")
        config[field] = used[-1] if used else 0


def _by_family(config: dict[str, Any], get: dict[str, Any], name: str) -> None:
    kind = config["model_type"]
    if kind == "llama" and config.get("num_experts"):
        config |= {"model_type": "mixtral", "num_local_experts": config["num_experts"], "sliding_window": None}
    if kind in ("gpt_oss", "llama4_text", "minimax_m2", "phimoe", "granitemoehybrid"):
        config["num_local_experts"] = config.get("num_experts", 0)
        if config.get("moe_intermediate_size"):
            dense = config.get("intermediate_size")
            config |= {"intermediate_size": config["moe_intermediate_size"], "intermediate_size_mlp": dense}
    if kind == "gpt_oss":
        config["attention_bias"] = True
    if kind in ("glm4_moe", "deepseek_v3", "nemotron_h"):
        config["n_routed_experts"] = config.get("num_experts")
    if kind in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"):
        config |= {"use_sliding_window": False, "sliding_window": None}
    if kind == "deepseek_v3":
        rotated = get.get("rope.dimension_count", 64)
        key = get.get("attention.key_length_mla", get.get("attention.key_length"))
        config |= {"qk_rope_head_dim": rotated, "qk_nope_head_dim": key - rotated if isinstance(key, int) else None}
        config["v_head_dim"] = get.get("attention.value_length_mla", get.get("attention.value_length"))
        config |= {"head_dim": None, "num_key_value_heads": None, "q_lora_rank": get.get("attention.q_lora_rank")}
        if config["q_lora_rank"] is None:
            config |= {"model_type": "deepseek_v3"}
    _state_space(config, get, kind)


def _state_space(config: dict[str, Any], get: dict[str, Any], kind: str) -> None:
    """Recurrent layers: their widths under "ssm.", and which layers they are by a list of KV heads with zeros."""
    inner, state, kernel = (get.get(f"ssm.{key}") for key in ("inner_size", "state_size", "conv_kernel"))
    rank, groups = get.get("ssm.time_step_rank"), get.get("ssm.group_count")
    hidden = config.get("hidden_size")
    kept = config.pop("_kv_heads", None)
    if isinstance(kept, list):
        _layer_kinds(config, get, kind, kept)
    if not (isinstance(inner, int) and isinstance(hidden, int) and hidden > 0 and inner > 0):
        return
    expand = inner // hidden
    if kind == "mamba":
        config |= {"state_size": state, "conv_kernel": kernel, "time_step_rank": rank, "intermediate_size": inner}
    if kind == "jamba":
        config |= {"mamba_d_state": state, "mamba_d_conv": kernel, "mamba_dt_rank": rank, "mamba_expand": expand}
    if not isinstance(rank, int) or rank < 1:
        return
    if kind == "mamba2":
        config |= {"num_heads": rank, "head_dim": inner // rank, "n_groups": groups, "expand": expand}
        config |= {"state_size": state, "conv_kernel": kernel}
    if kind in ("granitemoehybrid", "falcon_h1", "bamba"):
        config |= {"mamba_n_heads": rank, "mamba_d_head": inner // rank, "mamba_d_state": state}
        config |= {"mamba_d_conv": kernel, "mamba_n_groups": groups, "mamba_expand": expand, "mamba_d_ssm": inner}
    if kind == "nemotron_h":
        config |= {"mamba_num_heads": rank, "mamba_head_dim": inner // rank, "ssm_state_size": state}
        config |= {"conv_kernel": kernel, "n_groups": groups}
    if kind in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        config |= {"linear_num_value_heads": rank, "linear_num_key_heads": groups, "linear_key_head_dim": state}
        config |= {"linear_value_head_dim": inner // rank, "linear_conv_kernel_dim": kernel}


def _layer_kinds(config: dict[str, Any], get: dict[str, Any], kind: str, kept: list[int]) -> None:
    """KV heads of each layer, 0 where it has no attention."""
    attention = [index for index, one in enumerate(kept) if one]
    if kind == "granitemoehybrid":
        config["layer_types"] = ["attention" if one else "mamba" for one in kept]
        config["shared_intermediate_size"] = get.get(
            "expert_shared_feed_forward_length", config.get("intermediate_size")
        )
    if kind == "lfm2":
        config["layer_types"] = ["full_attention" if one else "conv" for one in kept]
        config["block_auto_adjust_ff_dim"] = False  # the file holds the adjusted width
    if kind == "jamba" and len(attention) > 1:
        config |= {"attn_layer_offset": attention[0], "attn_layer_period": attention[1] - attention[0]}
    widths = get.get("feed_forward_length")
    if kind == "nemotron_h" and isinstance(widths, list) and len(widths) == len(kept):
        other = "moe" if config.get("num_experts") else "mlp"
        config["layers_block_type"] = [
            "full_attention" if one else other if width else "linear_attention"
            for one, width in zip(kept, widths, strict=True)
        ]
        config["moe_shared_expert_intermediate_size"] = get.get("expert_shared_feed_forward_length")


def _weights(header: GgufHeader, whole: bool) -> dict[str, Any]:
    if not header.tensors:
        return {}
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.kind] += tensor.bytes
    kind = {"_stored_type": sizes.most_common(1)[0][0]}
    if not whole:
        return kind  # a part of a split file says nothing about the whole
    return {
        **kind,
        "_stored_bytes": sum(sizes.values()),
        "_stored_parameters": sum(tensor.elements for tensor in header.tensors),
    }


def _read_parts(path: Path) -> tuple[GgufHeader, bool]:
    """The header; of a split file (name-00001-of-00003.gguf) with all parts' tensors, and whether all are there."""
    header = read_gguf_header(path)
    named = _SPLIT.fullmatch(path.name)
    count = header.metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return header, True
    if named is None or int(named[3]) != count or count > 1000:
        return header, False
    parts = [path.with_name(f"{named[1]}-{number:05d}-of-{named[3]}.gguf") for number in range(1, count + 1)]
    if not all(part.is_file() for part in parts):
        return header, False
    headers = [read_gguf_header(part) for part in parts]  # the first one holds the metadata
    return GgufHeader(headers[0].metadata, tuple(tensor for one in headers for tensor in one.tensors)), True
