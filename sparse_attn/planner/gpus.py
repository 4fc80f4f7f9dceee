"""GPUs as data: memory, bandwidth and dense rates, with the source of each (`gpus.json`)."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One card.

    Attributes:
        name, aliases: How it is asked for.
        memory_bytes: What the driver reports, bytes.
        bandwidth: Bytes a second, 10^9-based data sheet figure.
        bf16, fp8: Dense FLOP a second; `bf16` is the float16 rate where the card has no bfloat16 units (`has_bf16`);
            None for fp8: no such units.
        source: Where the figures come from.
    """

    name: str
    aliases: tuple[str, ...]
    memory_bytes: int
    bandwidth: float
    bf16: float
    fp8: float | None
    source: str
    has_bf16: bool = True

    def with_memory(self, memory_bytes: int) -> Gpu:
        """The same card with another capacity (`--gpu-memory`)."""
        if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int) or memory_bytes < 1:
            raise ValueError(f"gpu memory must be a positive whole number of bytes, got {memory_bytes!r}")
        return replace(self, memory_bytes=memory_bytes, source=f"{self.source}; memory as given")


@cache
def gpus() -> tuple[Gpu, ...]:
    """All that the data file knows."""
    data: dict[str, Any] = json.loads(files(__package__).joinpath("gpus.json").read_text("utf-8"))
    return tuple(
        Gpu(
            one["name"],
            tuple(one["aliases"]),
            one["memory_mib"] * 1024**2,
            one["bandwidth"] * 1e9,
            (one["bf16"] or one["fp16"]) * 1e12,
            one["fp8"] * 1e12 if one["fp8"] else None,
            one["source"],
            one["bf16"] is not None,
        )
        for one in data["gpus"]
    )


def find_gpu(name: str) -> Gpu:
    """The card of this name or alias; case, spaces and underscores do not matter.

    Raises:
        ValueError: unknown, with the nearest names.

    >>> find_gpu("A100 80GB").name
    'a100-80gb'
    """
    wanted = "-".join(str(name).lower().replace("_", " ").replace("nvidia", "").split())
    table = {known: gpu for gpu in gpus() for known in (gpu.name, *gpu.aliases)}
    if wanted in table:
        return table[wanted]
    near = difflib.get_close_matches(wanted, table, n=3, cutoff=0.4) or sorted(gpu.name for gpu in gpus())[:3]
    raise ValueError(f"gpu {name!r} is not known; nearest: {', '.join(near)} (or --gpu-memory gives its memory)")
