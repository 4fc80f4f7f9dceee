"""What weight files hold: the safetensors index's total, or the sum of the files' own headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

_MOST_HEADER = 100 * 1024**2  # the format's own limit


def stored_bytes(folder: Path) -> int | None:
    """Bytes of all tensors: `metadata.total_size` of model.safetensors.index.json, else the headers'; None if neither.

    Raises:
        ValueError: an index that is no JSON object, or a header that does not fit its file.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        if index.stat().st_size > _MOST_HEADER:
            raise ValueError(f"{index} has {index.stat().st_size:,} bytes, expected at most {_MOST_HEADER:,}")
        try:
            found: Any = json.loads(index.read_text("utf-8"))
            total = found.get("metadata", {}).get("total_size")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{index} is not a safetensors index: {error}") from None
        if total is None:
            return None
        if isinstance(total, bool) or not isinstance(total, int | float) or not 0 < total < 1 << 60:
            raise ValueError(f"{index}: metadata.total_size must be a positive number of bytes, got {total!r}")
        return int(total)
    single = folder / "model.safetensors"
    return tensor_bytes(single) if single.is_file() else None


def tensor_bytes(path: Path) -> int:
    """Bytes of a safetensors file's tensors, from its header, held against the file's length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(size - 8, _MOST_HEADER):
            raise ValueError(
                f"{path} is not a safetensors file: its header's length is {length}, the file has {size} bytes"
            )
        try:
            header: Any = json.loads(file.read(length))
            ends = [int(one["data_offsets"][1]) for name, one in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            raise ValueError(f"{path} is not a safetensors file: its header is no table of tensors") from None
    total = max(ends, default=0)
    here = size - 8 - length
    if total != here:
        raise ValueError(f"{path} is truncated or corrupt: its header lists {total} bytes of tensors, not {here}")
    return total
