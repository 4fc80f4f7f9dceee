"""A real config made small enough to run: its structure (layers, switches, intervals) stays, its widths shrink."""

import copy

_SMALL = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "intermediate_size_mlp": 56,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 20,
    "shared_intermediate_size": 20,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "sliding_window": 7,
    "attention_chunk_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "index_topk": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "mamba_n_heads": 8,
    "mamba_d_head": 12,
    "mamba_d_state": 10,
    "mamba_n_groups": 2,
    "mamba_num_heads": 8,
    "mamba_head_dim": 12,
    "mamba_dt_rank": 5,
    "n_groups": 2,
    "ssm_state_size": 10,
    "pad_token_id": 0,
    "rotary_dim": 8,
}
_ALWAYS = ("hidden_size", "vocab_size", "pad_token_id", "intermediate_size", "num_attention_heads")
_GROUPED = ("num_key_value_heads",)


def shrink(config: dict) -> dict:
    """The same config with small widths. Where all heads kept keys of their own, they still do."""
    config = {key: value for key, value in copy.deepcopy(config).items() if not key.startswith("_")}
    inner = config.get("text_config", config)
    own_keys = inner.get("num_key_value_heads") in (None, inner.get("num_attention_heads"))
    for name, small in _SMALL.items():
        zero = inner.get(name) in (0, None) and name in inner
        if (name in inner and not zero) or name in _ALWAYS:
            inner[name] = small
    if own_keys:
        inner["num_key_value_heads"] = inner["num_attention_heads"]
    inner.pop("quantization_config", None)
    config.pop("quantization_config", None)
    config.pop("vision_config", None)
    for scaling in (inner.get("rope_scaling"), inner.get("rope_parameters")):
        if isinstance(scaling, dict) and "short_factor" in scaling:
            scaling["short_factor"] = scaling["short_factor"][:4]
            scaling["long_factor"] = scaling["long_factor"][:4]
        if isinstance(scaling, dict):
            scaling.pop("mrope_section", None)
    if inner.get("model_type") == "falcon_h1":
        inner |= {"mamba_d_ssm": 96, "mamba_n_groups": 2}
    return config
