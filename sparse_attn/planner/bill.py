"""The bill of what sequences keep: its lines, and the bits and bytes that they are written in."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from .dtypes import PLAIN_BITS, kv_bits, state_bits
from .records import Memory, Model


@dataclass(frozen=True)
class LayerCost:
    """One layer's bytes for one sequence: what each further token adds, and what is bounded (when full)."""

    index: int
    kind: str
    bytes_per_token: float
    bounded_bytes: int


@dataclass(frozen=True)
class Item:
    """One line of the bill: bytes for one sequence, at the asked context."""

    name: str
    bytes: int
    bytes_per_token: float = 0
    note: str = ""


@dataclass(frozen=True)
class KvCost:
    """What sequences keep.

    Attributes:
        accounting, kv_dtype, context, batch: What was asked.
        growing_bytes_per_token: What each further token of one sequence adds at the end of a long one.
        bounded_bytes: What one sequence keeps beside that at this context: rings, chunks, states, padding.
        total_bytes: All sequences together: batch x one sequence's, plus what is reserved once.
        layers: Each layer's part of one sequence.
        items: The same by name.
        reserved_bytes: Kept once, whatever the batch (vLLM's null block).
        notes: What the accounting adds, in words.
    """

    accounting: str
    kv_dtype: str
    context: int
    batch: int
    growing_bytes_per_token: float
    bounded_bytes: int
    total_bytes: int
    layers: tuple[LayerCost, ...]
    items: tuple[Item, ...]
    reserved_bytes: int = 0
    notes: tuple[str, ...] = ()


def bits_of(memory: Memory, model: Model, kv_dtype: str) -> int:
    """Bits of one number of a term."""
    if memory.precision == "kv":
        return kv_bits(kv_dtype)
    if memory.precision == "float32":
        return 32
    if memory.precision == "state":
        return state_bits(model.state_dtype) if model.state_dtype else 32
    return PLAIN_BITS.get(model.dtype, 16)


def shard(memory: Memory, tensor_parallel: int) -> int:
    """Into how many parts a term is cut among GPUs: its heads are shared out, or copied where there are too few."""
    return max(1, min(tensor_parallel, memory.heads))


def bytes_of(bits: int, share: int = 1) -> int:
    """Whole bytes of so many bits, cut `share` ways."""
    return -(-bits // (8 * share))


def plain(value: Fraction) -> float:
    """An int where it is whole."""
    return int(value) if value.denominator == 1 else float(value)


def check_count(name: str, value: int, least: int = 1, most: int = 1 << 50) -> None:
    """A whole number from `least` to `most`, or one sentence."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most:,}, got {value!r}")
