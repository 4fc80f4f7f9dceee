"""The header of a GGUF file: its metadata and its table of tensors, read with every length checked against the file.

Layout (little-endian): "GGUF", version u32, tensors u64, entries u64; an entry is a key, a type u32 and a value; a text is
a length u64 and its bytes; an array is a type u32, a length u64 and its items; a tensor is a name, dimensions u32, that
many u64, a block type u32 and an offset u64 into the data, which starts at the next multiple of `general.alignment`.
Source: ggml's docs/gguf.md. Long arrays (the vocabulary) are counted, not kept.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .dtypes import GGUF_BLOCKS

_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_KEPT_ITEMS = 4096  # longer than any list of layers
_TYPE_NAMES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the table: name, number of weights, block type, bytes."""

    name: str
    elements: int
    kind: str
    bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata (arrays of more than 4,096 items as their length under "<key>#") and tensors."""

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check a header; the tensors' data is not touched.

    Raises:
        ValueError: not GGUF, an unknown version or type, a length beyond the file, or tensors beyond its end.
    """
    size = path.stat().st_size
    if size < 24:
        raise ValueError(f"{path} is not a GGUF file: it has {size} bytes, and a header has at least 24")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data, size).header()
        except (struct.error, IndexError):
            raise ValueError(
                f"{path} is a corrupt or truncated GGUF file: its header ends beyond its {size} bytes"
            ) from None
        except _Corrupt as error:
            raise ValueError(f"{path} is a corrupt or truncated GGUF file ({size} bytes): {error}") from None


class _Corrupt(Exception):
    pass


class _Reader:
    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size, self.at = data, size, 0

    def header(self) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            raise _Corrupt(f"it starts with {bytes(self.data[:4])!r}, expected b'GGUF'")
        self.at = 4
        version = self.scalar(4)
        if version not in (2, 3):
            raise _Corrupt(f"version {version} is not supported, expected 2 or 3")
        tensors, entries = self.count("tensors", 24), self.count("entries", 13)
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self.text()
            self.value(key, self.scalar(4), metadata)
        table = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _Corrupt(f"general.alignment is {alignment!r}, expected a power of two")
        start = -(-self.at // alignment) * alignment
        for tensor, offset in table:
            if start + offset + tensor.bytes > self.size:
                raise _Corrupt(f"tensor {tensor.name!r} ends at byte {start + offset + tensor.bytes}")
        return GgufHeader(metadata, tuple(tensor for tensor, _ in table))

    def scalar(self, kind: int) -> Any:
        form = _SCALARS.get(kind)
        if form is None:
            raise _Corrupt(f"value type {kind} at byte {self.at} is unknown")
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def count(self, what: str, least: int) -> int:
        """A length of the header: each of so many things takes at least `least` bytes."""
        value = int(self.scalar(10))
        if value * least > self.size - self.at:
            raise _Corrupt(f"it counts {value} {what}, more than its bytes can hold")
        return value

    def text(self) -> str:
        length = self.count("characters", 1)
        value = self.data[self.at : self.at + length]
        self.at += length
        return value.decode("utf-8", "replace")

    def value(self, key: str, kind: int, into: dict[str, Any]) -> None:
        if kind == _TEXT:
            into[key] = self.text()
        elif kind == _ARRAY:
            self.array(key, into)
        else:
            into[key] = self.scalar(kind)

    def array(self, key: str, into: dict[str, Any]) -> None:
        kind = self.scalar(4)
        if kind == _ARRAY:
            raise _Corrupt(f"{key!r} is an array of arrays")
        if kind == _TEXT:
            length = self.count("texts", 8)
            into[f"{key}#"] = length
            for _ in range(length):
                self.at += 8 + struct.unpack_from("<Q", self.data, self.at)[0]
                if self.at > self.size:
                    raise _Corrupt(f"{key!r} ends beyond the file")
            return
        form = _SCALARS.get(kind)
        if form is None:
            raise _Corrupt(f"{key!r} is an array of the unknown type {kind}")
        width = struct.calcsize(form)
        length = self.count("items", width)
        into[f"{key}#"] = length
        if length <= _KEPT_ITEMS:
            into[key] = [struct.unpack_from(form, self.data, self.at + width * i)[0] for i in range(length)]
        self.at += width * length

    def tensor(self) -> tuple[Tensor, int]:
        name = self.text()
        dims = self.scalar(4)
        if dims > 8:
            raise _Corrupt(f"tensor {name!r} has {dims} dimensions, expected 8 at most")
        elements = 1
        for _ in range(dims):
            elements *= self.scalar(10)
        kind, offset = self.scalar(4), self.scalar(10)
        known = _TYPE_NAMES.get(kind)
        if known is None:
            raise _Corrupt(f"tensor {name!r} has the unknown block type {kind}")
        size, weights = GGUF_BLOCKS[known]
        if elements % weights:
            raise _Corrupt(f"tensor {name!r} has {elements} weights, no multiple of {known}'s block of {weights}")
        return Tensor(name, elements, known, elements // weights * size), offset
