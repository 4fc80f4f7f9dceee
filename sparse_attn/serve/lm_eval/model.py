"""The model `sparse_attn` of lm-evaluation-harness: a Hugging Face model that attends through a pattern."""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from ...hf import load_model
from ...hf.measure import HfReader


@register_model("sparse_attn")
class SparseAttnLM(HFLM):  # type: ignore[misc]
    """A model of lm-evaluation-harness that attends through a pattern.

    Args:
        pretrained: A folder with safetensors weights, a .gguf file, or a model id in the local Hugging Face cache; none, or
            ``default``: SmolLM2-135M-Instruct; ``gemma3-270m``: the optional base model. Nothing is downloaded.
        pattern: What each token may see, e.g. ``window(512) | sinks(4)``; none: dense. A pattern with commas in it cannot be
            written in ``--model_args``, which is split at commas: give a dict there instead.
        full_layers: Numbers of layers that stay dense, with ``+`` between them, e.g. ``0+7+18``.
        device, dtype: Where and as what the model is held. The harness names a CUDA device where nothing was asked for: without
            any, that is the CPU.
        options: As for lm-evaluation-harness's own ``hf`` model.

    Raises:
        ValueError: what `load_model` and `sparsify` refuse, or a layer that the model does not have.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        pattern: str | None = None,
        full_layers: str | int = "",
        device: str | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> None:
        chosen = getattr(torch, dtype, None) if dtype != "auto" else torch.float32
        if not isinstance(chosen, torch.dtype):
            raise ValueError(f"dtype must name a torch dtype such as float32 or bfloat16, got {dtype!r}")
        model, tokenizer = load_model(None if pretrained in (None, "", "default") else pretrained, dtype=chosen)
        reader = HfReader(model.to(_device(device)), tokenizer)
        dense = [int(number) for number in str(full_layers).split("+") if number.strip()]
        if outside := [layer for layer in dense if not 0 <= layer < reader.layers]:
            raise ValueError(f"full_layers names layers {outside}, but the model's are 0 to {reader.layers - 1}")
        if pattern:
            reader.attend([None if layer in dense else pattern for layer in range(reader.layers)])
        super().__init__(pretrained=model, tokenizer=tokenizer, **options)


def _device(name: str | None) -> torch.device:
    device = torch.device(name or "cpu")
    return torch.device("cpu") if device.type == "cuda" and not torch.cuda.is_available() else device
