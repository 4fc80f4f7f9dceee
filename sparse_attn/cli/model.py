"""The model that a command reads with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .console import waiting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


HELP = (
    "A folder with safetensors weights, a .gguf file, or a model id in the local Hugging Face cache; gemma3-270m: the optional "
    "base model. Without it: SmolLM2-135M-Instruct."
)


def is_base_model(name: str | None) -> bool:
    """Whether the name is that of a packaged model that never saw a chat: its prompts are raw without saying so."""
    from ..hf.gemma3_270m import NAME

    return name == NAME


def load(name: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The named model, or the embedded default, on the CPU.

    Raises:
        ValueError: what `sparse_attn.hf.load_model` refuses.
    """
    with waiting("loading torch and transformers"):
        from transformers.utils import logging

        from ..hf import load_model

    # Their bars and warnings would stand between ours; what goes wrong is raised.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with waiting("loading the model" if name is None else f"loading {name}") as remark:
        return load_model(name, report=remark)
