"""A GGUF file's metadata as a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_gguf_config(path: Path) -> dict[str, Any]:
    """To come."""
    raise ValueError(f"{path}: GGUF metadata cannot be read yet")
