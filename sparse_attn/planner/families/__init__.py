"""One rule a family: `model_type` -> its layers. Add a family by one entry here and one function that cites fields."""

from __future__ import annotations

from collections.abc import Callable

from ..fields import Fields
from . import gemma, llama, qwen
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
}

#: Outer `model_type` -> the text model's, where a nested text_config leaves its own out.
TEXT_MODELS: dict[str, str] = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "mistral3": "mistral",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "gemma4": "gemma4_text",
}

#: Other names for the same rule: the class that the model's authors name, or an older name.
SAME_AS: dict[str, str] = {
    "gemma3": "gemma3_text",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
}

MODEL_TYPES: tuple[str, ...] = tuple(sorted({*RULES, *TEXT_MODELS, *SAME_AS}))
