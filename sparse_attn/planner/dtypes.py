"""Bits of a number in each format: the KV cache's, the weights', and GGUF's block types.

A packed format's bits count its scales. Where a format leaves some tensors alone, `weights.py` says which.
"""

from __future__ import annotations

import difflib
from fractions import Fraction

#: KV cache formats, bits per number. Scales are not counted: engines keep one per tensor, head or block, apart.
KV_BITS: dict[str, int] = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4}

#: Plain number formats.
PLAIN_BITS: dict[str, int] = {"fp32": 32, "bf16": 16, "fp16": 16}

#: Packed weights, bits per parameter of a linear layer, scales included.
PACKED_BITS: dict[str, Fraction] = {
    "fp8": Fraction(8) + Fraction(32, 128 * 128),  # one float32 scale per 128 x 128 block, as DeepSeek-V3 stores it
    "int8": Fraction(8) + Fraction(16, 4096),  # one 16-bit scale a row; 4,096 columns stand for any width
    "int4": Fraction(4) + Fraction(16 + 4, 128),  # GPTQ and AWQ: a 16-bit scale and a 4-bit zero per 128
    "nf4": Fraction(4) + Fraction(32, 64),  # bitsandbytes: a float32 maximum per 64, without double quantisation
    "mxfp4": Fraction(4) + Fraction(8, 32),  # OCP microscaling: an 8-bit exponent per 32
    "nvfp4": Fraction(4) + Fraction(8, 16),  # NVIDIA: an 8-bit scale per 16
}

#: GGUF block types: (bytes, weights) of a block, from ggml's block_* structs (github.com/ggml-org/ggml, ggml-common.h).
GGUF_BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (4, 1),
    "F16": (2, 1),
    "BF16": (2, 1),
    "Q4_0": (18, 32),
    "Q4_1": (20, 32),
    "Q5_0": (22, 32),
    "Q5_1": (24, 32),
    "Q8_0": (34, 32),
    "Q8_1": (36, 32),
    "Q2_K": (84, 256),
    "Q3_K": (110, 256),
    "Q4_K": (144, 256),
    "Q5_K": (176, 256),
    "Q6_K": (210, 256),
    "Q8_K": (292, 256),
    "IQ1_S": (50, 256),
    "IQ1_M": (56, 256),
    "IQ2_XXS": (66, 256),
    "IQ2_XS": (74, 256),
    "IQ2_S": (82, 256),
    "IQ3_XXS": (98, 256),
    "IQ3_S": (110, 256),
    "IQ4_NL": (18, 32),
    "IQ4_XS": (136, 256),
    "TQ1_0": (54, 256),
    "TQ2_0": (66, 256),
    "MXFP4": (17, 32),
    "F64": (8, 1),
    "I8": (1, 1),
    "I16": (2, 1),
    "I32": (4, 1),
    "I64": (8, 1),
}

#: llama.cpp's mixes choose a type for each tensor. Bits per weight of Llama-3.1-8B, as its tools/quantize/README.md
#: lists them: right within some per cent for other models.
GGUF_MIXES: dict[str, float] = {
    "Q2_K_S": 2.9697,
    "Q3_K_S": 3.6429,
    "Q3_K_M": 3.9960,
    "Q3_K_L": 4.2979,
    "Q4_K_S": 4.6672,
    "Q4_K_M": 4.8944,
    "Q5_K_S": 5.5704,
    "Q5_K_M": 5.7036,
    "IQ2_M": 2.9294,
    "IQ3_XS": 3.4977,
    "IQ3_M": 3.7628,
}

_OTHER_NAMES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8": "fp8",
    "fp4": "mxfp4",
}


def kv_bits(name: str) -> int:
    """Bits of one number in the KV cache.

    Raises:
        ValueError: no such format.
    """
    known = _OTHER_NAMES.get(str(name).lower(), str(name).lower())
    if known not in KV_BITS:
        raise ValueError(f"kv must be one of {', '.join(KV_BITS)}, got {name!r}")
    return KV_BITS[known]


def weight_format(name: str) -> str:
    """A weight format's own name; GGUF types in capitals.

    Raises:
        ValueError: no such format; the nearest names are given.
    """
    low = _OTHER_NAMES.get(str(name).lower(), str(name).lower())
    if low in PLAIN_BITS or low in PACKED_BITS:
        return low
    high = str(name).upper().removeprefix("GGUF:").removeprefix("GGUF-")
    if high in GGUF_BLOCKS or high in GGUF_MIXES:
        return high
    known = [*PLAIN_BITS, *PACKED_BITS, *GGUF_MIXES, *GGUF_BLOCKS]
    near = difflib.get_close_matches(str(name), known, n=3) or difflib.get_close_matches(high, known, n=3)
    hint = f" (near: {', '.join(near)})" if near else ""
    plain = ", ".join([*PLAIN_BITS, *PACKED_BITS])
    raise ValueError(f"weights must be one of {plain} or a GGUF type such as Q4_K_M, got {name!r}{hint}")


def state_bits(name: str) -> int:
    """Bits of a recurrent state's number, from a torch dtype's name."""
    return {"float32": 32, "float16": 16, "bfloat16": 16, "fp32": 32, "bf16": 16, "fp16": 16}.get(name, 32)
