"""GGUF files: are they whole, and what transformers makes of them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

_MAGIC = b"GGUF"


def check_gguf(path: Path) -> None:
    """Refuse a file that is not a whole GGUF file. Reads all of its header, which takes some seconds.

    Raises:
        ValueError: missing, empty, not GGUF, corrupt, or shorter than the tensors that its header lists.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise ValueError(f"GGUF file not found: {path}")
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise ValueError(f"{path} is not a GGUF file: it starts with {magic!r}, expected {_MAGIC!r}")
    try:
        tensors = GGUFReader(path, "r").tensors
        end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in tensors), default=0)
    except Exception as error:  # the reader fails in many ways on bytes that make no sense
        raise ValueError(
            f"{path} is a corrupt or truncated GGUF file ({path.stat().st_size} bytes): {_first_line(error)}"
        ) from error
    if not tensors or end > path.stat().st_size:
        raise ValueError(
            f"{path} is a corrupt or truncated GGUF file: it has {path.stat().st_size} bytes, but its header lists "
            f"{len(tensors)} tensors up to byte {end}"
        )


def read_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer, weights unpacked to float32, which holds every quantised value exactly. Takes some 20 s.

    Raises:
        ValueError: the file is not a whole GGUF file, or transformers cannot make a model of it.
    """
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(
            **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    except Exception as error:  # whatever transformers stumbles over, the file is what the user can change
        check_gguf(path)
        raise ValueError(f"{path} cannot be loaded as a causal language model: {_first_line(error)}") from error
    # `save_pretrained` refuses while the config says that weights are packed.
    vars(model.config).pop("quantization_config", None)
    return model, tokenizer


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else repr(error)
