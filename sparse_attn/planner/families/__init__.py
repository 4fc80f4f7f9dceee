"""One rule a family: `model_type` -> its layers. Add a family by one entry here and one function that cites fields."""

from __future__ import annotations

from collections.abc import Callable

from ..fields import Fields
from . import deepseek, deepseek_v4, encoders, gemma, hybrid_qwen, llama, moe, qwen, state_space
from .stack import Stack

Rule = Callable[[Fields], Stack]

RULES: dict[str, Rule] = {
    "llama": llama.llama,
    "mistral": llama.mistral,
    "ministral": llama.ministral,
    "ministral3": llama.mistral,
    "mixtral": llama.mixtral,
    "phi": llama.phi,
    "phi3": llama.phi3,
    "phimoe": llama.phimoe,
    "smollm3": llama.smollm3,
    "olmo": llama.olmo,
    "olmo2": llama.olmo2,
    "olmo3": llama.olmo3,
    "olmoe": llama.olmoe,
    "cohere": llama.cohere,
    "cohere2": llama.cohere2,
    "glm": llama.glm,
    "glm4": llama.glm4,
    "qwen2": qwen.qwen2,
    "qwen2_moe": qwen.qwen2_moe,
    "qwen3": qwen.qwen3,
    "qwen3_moe": qwen.qwen3_moe,
    "gemma": gemma.gemma,
    "gemma2": gemma.gemma2,
    "gemma3_text": gemma.gemma3,
    "gemma4_text": gemma.gemma4,
    "llama4_text": moe.llama4,
    "gpt_oss": moe.gpt_oss,
    "glm4_moe": moe.glm4_moe,
    "minimax": moe.minimax,
    "minimax_m2": moe.minimax_m2,
    "mimo": moe.mimo,
    "mimo_v2_flash": moe.mimo_v2,
    "deepseek_v2": deepseek.deepseek_v3,
    "deepseek_v3": deepseek.deepseek_v3,
    "deepseek_v32": deepseek.deepseek_v32,
    "deepseek_v4": deepseek_v4.deepseek_v4,
    "glm4_moe_lite": deepseek.glm4_moe_lite,
    "glm_moe_dsa": deepseek.glm_moe_dsa,
    "qwen3_next": hybrid_qwen.qwen3_next,
    "qwen3_5_text": hybrid_qwen.qwen3_5,
    "qwen3_5_moe_text": hybrid_qwen.qwen3_5_moe,
    "olmo_hybrid": hybrid_qwen.olmo_hybrid,
    "kimi_linear": hybrid_qwen.kimi_linear,
    "mamba": state_space.mamba,
    "falcon_mamba": state_space.mamba,
    "mamba2": state_space.mamba2,
    "jamba": state_space.jamba,
    "bamba": state_space.bamba,
    "granitemoehybrid": state_space.granite_hybrid,
    "falcon_h1": state_space.falcon_h1,
    "nemotron_h": state_space.nemotron_h,
    "zamba2": state_space.zamba2,
    "recurrent_gemma": state_space.recurrent_gemma,
    "rwkv": state_space.rwkv,
    "lfm2": state_space.lfm2,
    "longformer": encoders.longformer,
    "big_bird": encoders.big_bird,
}

#: Other names for a rule: the outer `model_type` of a nested or older config, or the name that its authors' own class has.
SAME_AS: dict[str, str] = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "kimi_k2": "deepseek_v3",
    "llama4": "llama4_text",
    "mimo_v2": "mimo_v2_flash",
    "minimax_m1": "minimax",
    "minimax_text_01": "minimax",
    "mistral3": "mistral",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}

MODEL_TYPES: tuple[str, ...] = tuple(sorted({*RULES, *SAME_AS}))
