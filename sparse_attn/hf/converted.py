"""The cache of converted GGUF models: safetensors folders that are whole or not there.

A folder is written beside its place under a name of its own and renamed once complete, so that neither a crash nor a
second process leaves half a model. Its manifest lists every file's size, and the hash of the small ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from .gguf_file import read_gguf

_MANIFEST = "manifest.json"
_HASHED_UP_TO = 16 * 2**20  # bytes; weights are checked by size, and by safetensors' own header, to start fast
_FORMAT = "1"  # part of the folder's name: raise it when conversion changes


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/sparse-attn``, or ``~/.cache/sparse-attn``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "sparse-attn"


def converted_folder(gguf: Path, report: Callable[[str], None] | None = None) -> Path:
    """The safetensors folder of a GGUF file; converts it the first time, and again if the folder is damaged.

    Args:
        gguf: The file. Its content decides the folder: a copy elsewhere is the same model.
        report: Told what is done before anything that takes long.

    Raises:
        ValueError: the file is missing, corrupt or no causal language model, or the cache folder cannot be written.
    """
    if not gguf.is_file():
        raise ValueError(f"GGUF file not found: {gguf}")
    with gguf.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = cache_root() / f"{gguf.stem}-{key}-{_FORMAT}"
    if not is_whole(folder):
        if report is not None:
            report(f"converting {gguf.name} once, to {folder}")
        try:
            _convert(gguf, folder)
        except OSError as error:
            raise ValueError(
                f"cache folder {folder.parent} cannot be written ({error.strerror or error}): make room, or set "
                "XDG_CACHE_HOME to a folder that can"
            ) from error
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a converted folder holds exactly what its manifest lists."""
    try:
        listed = json.loads((folder / _MANIFEST).read_text())
        return bool(listed) and all(_describe(folder / name) == entry for name, entry in listed.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(gguf: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "model"
        model, tokenizer = read_gguf(gguf)
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        files = sorted(path for path in fresh.iterdir() if path.is_file())
        (fresh / _MANIFEST).write_text(json.dumps({path.name: _describe(path) for path in files}, indent=1))
        if folder.exists() and not is_whole(folder):
            os.rename(folder, Path(scratch) / "damaged")
        try:
            os.rename(fresh, folder)
        except OSError:
            if not is_whole(folder):  # otherwise another process was faster, with the same result
                raise


def _describe(path: Path) -> dict[str, int | str]:
    size = path.stat().st_size
    if size > _HASHED_UP_TO:
        return {"bytes": size}
    return {"bytes": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def forget(folder: Path) -> None:
    """Remove a converted folder that turned out unusable."""
    shutil.rmtree(folder, ignore_errors=True)
