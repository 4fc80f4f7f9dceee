"""What weight files hold: the safetensors index's total, or the sum of the files' own headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

_MOST_HEADER = 100 * 1024**2  # the format's own limit


def stored_weights(folder: Path) -> dict[str, int]:
    """`_stored_bytes` and, where it is told, `_stored_parameters`; {} if there are no safetensors.

    From model.safetensors.index.json (`metadata.total_size`, `metadata.total_parameters`), else from the one file's header.

    Raises:
        ValueError: an index that is no JSON object, or a header that does not fit its file.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        return {"_stored_bytes": tensor_bytes(single)} if single.is_file() else {}
    if index.stat().st_size > _MOST_HEADER:
        raise ValueError(f"{index} has {index.stat().st_size:,} bytes, expected at most {_MOST_HEADER:,}")
    try:
        metadata: Any = json.loads(index.read_text("utf-8")).get("metadata") or {}
        told = {"_stored_bytes": metadata.get("total_size"), "_stored_parameters": metadata.get("total_parameters")}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{index} is not a safetensors index: {error}") from None
    for name, value in told.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1 << 60
        ):
            raise ValueError(f"{index}: {name.removeprefix('_stored_')} must be a positive number, got {value!r}")
    return {name: int(value) for name, value in told.items() if value is not None}


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
