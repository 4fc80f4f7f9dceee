"""The MODEL argument of `inspect` and `plan`: read and resolved, downloaded only if that was asked for."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..planner import Model, describe, read_config

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ("config.json", "model.safetensors.index.json")


def resolve(source: str, *, assume: str | None, download: bool) -> Model:
    """The model behind a path, or behind an id in the local cache.

    Raises:
        ValueError: what `read_config` and `describe` refuse, with the source's name before it; a failed download.
    """
    if not source.strip():
        raise ValueError("MODEL is empty, expected a config.json, a folder with one, a GGUF file or a model's id")
    if assume not in (None, "full"):
        raise ValueError(f"--assume must be 'full', got {assume!r}")
    if download and not os.path.exists(source):
        _download(source)
    config = read_config(source)
    try:
        return describe(config, assume=assume)
    except ValueError as error:
        said = str(error)
        raise ValueError(
            source + said.removeprefix("config.json") if said.startswith("config.json") else f"{source}: {said}"
        ) from None


def name_of(source: str) -> str:
    """A short name for tables: the file's stem, the folder's name, or the id's last part.

    >>> name_of("models/Qwen3-32B/config.json"), name_of("org/Model-7B"), name_of("configs/Llama.json")
    ('Qwen3-32B', 'Model-7B', 'Llama')
    """
    path = Path(source)
    if path.name == "config.json" and path.absolute().parent.name:
        return path.absolute().parent.name
    return (
        path.stem if path.suffix in (".json", ".gguf") else path.absolute().name if source in (".", "..") else path.name
    )


def _download(name: str) -> None:
    """Bring config.json and the weights' index of a public model into the local cache; no weights."""
    if not _HUB_ID.fullmatch(name):
        raise ValueError(f"--download needs a model's id such as org/name, got {name!r}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for file in _WANTED:
        try:
            hf_hub_download(name, file)
        except EntryNotFoundError:
            if file == _WANTED[0]:
                raise ValueError(f"{name} has no {file}") from None
        except Exception as error:  # the library's errors have many bases: network, access, names
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"{name} could not be downloaded: {reason[0]}") from None
