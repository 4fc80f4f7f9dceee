"""How a checkpoint is stored: `torch_dtype`, and `quantization_config` reduced to one of our weight dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from .records import Quantization

_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "half": "fp16",
    "float": "fp32",
    "float8_e4m3fn": "fp8",
}
_METHODS = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "finegrained_fp8": "fp8",
    "mxfp4": "mxfp4",
    "gptq": "int4",
    "awq": "int4",
    "auto-round": "int4",
    "modelopt": "fp8",
}


def read_dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    """`dtype` or `torch_dtype`, the text model's first; bf16 where neither says anything."""
    for source in (text, config):
        for name in ("dtype", "torch_dtype"):
            value = source.get(name)
            if isinstance(value, str):
                return _DTYPES.get(value.removeprefix("torch."), "bf16")
    return "bf16"


def read_quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> Quantization | None:
    """`quantization_config` as a method and the weight dtype nearest to it; None if weights are plain."""
    if isinstance(config.get("_stored_type"), str):  # a GGUF file names its own
        return Quantization("gguf", config["_stored_type"])
    given = text.get("quantization_config") or config.get("quantization_config")
    if not isinstance(given, Mapping):
        return None
    method = str(given.get("quant_method") or given.get("quant_algo") or "unknown").lower()
    weights = _METHODS.get(method, "")
    bits = given.get("bits") or given.get("w_bit") or given.get("weight_bits")
    if method in ("gptq", "awq") and bits == 8:
        weights = "int8"
    if method == "bitsandbytes":
        four = given.get("load_in_4bit") or given.get("_load_in_4bit")
        weights = ("nf4" if given.get("bnb_4bit_quant_type", "fp4") == "nf4" else "int4") if four else "int8"
    if method in ("compressed-tensors", "quark"):
        weights = _compressed(given)
    if "fp4" in str(given.get("quant_algo", "")).lower() or "nvfp4" in method:
        weights = "nvfp4"
    spared = given.get("modules_to_not_convert") or given.get("ignore") or given.get("ignored_layers") or ()
    if not isinstance(spared, list | tuple):
        spared = ()
    return Quantization(method, weights or "bf16", tuple(str(name) for name in spared), _bits(given, weights))


def _bits(given: Mapping[str, Any], weights: str) -> Fraction | None:
    """A 16-bit scale per group, and a 4-bit zero where the method has one; bitsandbytes' second quantisation of scales."""
    if weights == "nf4" and given.get("bnb_4bit_use_double_quant"):
        return 4 + Fraction(8, 64) + Fraction(32, 64 * 256)
    group, zero = given.get("group_size", given.get("q_group_size")), 4
    groups = given.get("config_groups")
    for one in groups.values() if isinstance(groups, Mapping) else ():
        packed = one.get("weights") if isinstance(one, Mapping) else None
        if isinstance(packed, Mapping):
            group, zero = packed.get("group_size"), 0 if packed.get("symmetric", True) else 4
    if weights != "int4" or isinstance(group, bool) or not isinstance(group, int) or group < 1:
        return None
    return 4 + Fraction(16 + zero, group)


def _compressed(given: Mapping[str, Any]) -> str:
    groups = given.get("config_groups") or {}
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            bits, kind = weights.get("num_bits"), str(weights.get("type", "int"))
            if bits == 8:
                return "fp8" if kind == "float" else "int8"
            if bits == 4:
                return "nvfp4" if kind == "float" else "int4"
    return "fp8" if "float" in str(given.get("format", "")) else "int8" if given.get("format") else ""
