"""Where configs come from: a file, a folder, a model's id in the local Hugging Face cache, a GGUF file's header.

Nothing is downloaded here. What a file says about its weights' size comes along under keys that begin with "_".
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

_MOST_BYTES = 16 * 1024**2  # the largest published config.json is under 1 MB
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def read_config(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The config behind a file, a folder with a config.json, a Hugging Face id in the local cache, or a GGUF file.

    A folder's safetensors index or headers, and a GGUF's tensors, give the stored size of the weights: it comes back as
    `_stored_bytes`, beside the config's own keys.

    Raises:
        ValueError: nothing there, a folder without config.json, not JSON, not an object, too large a file, a corrupt
            GGUF; one sentence each.

    Cost: reads config.json and headers only.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_file(path)
    text = str(source)
    if path.exists():
        raise ValueError(f"{text} is neither a file nor a folder")
    if _HUB_ID.fullmatch(text) and path.suffix not in (".json", ".gguf"):
        return _read_cached(text)
    raise ValueError(f"{text} not found: expected a config.json, a folder with one, a GGUF file or a model's id")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if start == b"GGUF" or path.suffix == ".gguf":
        from .gguf_config import read_gguf_config

        return read_gguf_config(path)
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, expected a config.json of at most {_MOST_BYTES:,}")
    try:
        config = json.loads(path.read_bytes().decode("utf-8-sig"), parse_constant=_no_constant)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ValueError(f"{path} is not a config: its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _read_folder(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        packed = sorted(folder.glob("*.gguf"))
        if len(packed) == 1:
            return _read_file(packed[0])
        raise ValueError(f"{folder} is a folder without config.json")
    from .stored_weights import stored_weights

    return _read_json(path) | stored_weights(folder)


def _read_cached(name: str) -> dict[str, Any]:
    """The newest snapshot of a model in the hub's cache; `refs/main` decides where there is one."""
    store = _cache_folder() / f"models--{name.replace('/', '--')}"
    folders = []
    main = store / "refs" / "main"
    if main.is_file():
        folders.append(store / "snapshots" / main.read_text("utf-8").strip())
    if (store / "snapshots").is_dir():
        folders += sorted((store / "snapshots").iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
    for folder in folders:
        if (folder / "config.json").is_file():
            return _read_folder(folder)
    raise ValueError(
        f"{name} is neither a file nor in the local Hugging Face cache ({_cache_folder()}); nothing is downloaded"
    )


def _cache_folder() -> Path:
    """Where the hub's library keeps models: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"
