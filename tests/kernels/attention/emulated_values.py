"""What an emulated Gluon kernel handles: tensors, pointers, shared memory, descriptors, barriers, products."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


class Value(np.ndarray):  # type: ignore[type-arg]
    """A tensor or a number of the kernel's."""

    type = SimpleNamespace(layout=None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> "Value":
        return np.asarray(array).view(Value)

    def __getitem__(self, key: Any) -> "Value":
        return np.asarray(self)[key].view(Value)

    # The kernel's numbers are values: another name for one stays what it was.
    def __iadd__(self, other: Any) -> "Value":  # type: ignore[override,misc]
        return value(self + other)

    def __isub__(self, other: Any) -> "Value":  # type: ignore[override,misc]
        return value(self - other)

    def __ixor__(self, other: Any) -> "Value":  # type: ignore[override,misc]
        return value(self ^ other)

    def __floordiv__(self, other: Any) -> "Value":
        return _quotient(self, other)

    def __rfloordiv__(self, other: Any) -> "Value":
        return _quotient(other, self)

    def __mod__(self, other: Any) -> "Value":
        return value(np.asarray(self) - np.asarray(_quotient(self, other)) * np.asarray(other))

    def __rmod__(self, other: Any) -> "Value":
        return value(other) % self

    def to(self, kind: Any) -> "Value":
        if kind in (torch.float16, torch.bfloat16):
            return value(torch.from_numpy(np.array(self, dtype=np.float32)).to(kind).float().numpy())
        return value(np.asarray(self).astype({torch.float32: np.float32, torch.int64: np.int64}[kind]))


def value(of: Any) -> Value:
    return np.asarray(of).view(Value)


def _quotient(a: Any, b: Any) -> Value:
    """Rounded towards zero, as on the GPU."""
    a, b = np.asarray(a), np.asarray(b)
    return value(np.abs(a) // np.abs(b) * np.sign(a) * np.sign(b))


class Pointer:
    """Somewhere in a tensor's memory."""

    def __init__(self, memory: Any, at: Any = 0) -> None:
        self.memory, self.at = memory, at

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.memory, value(self.at) + offset)


class Shared:
    """A tile, or several, in shared memory."""

    def __init__(self, memory: Any, dtype: Any) -> None:
        self.memory, self.dtype = memory, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.memory.shape  # type: ignore[no-any-return]

    @property
    def type(self) -> Any:
        return SimpleNamespace(shape=self.shape)

    def index(self, nth: Any) -> "Shared":
        return Shared(self.memory[int(nth)], self.dtype)

    def slice(self, start: int, count: int) -> "Shared":
        return Shared(self.memory[start : start + count], self.dtype)

    def permute(self, order: tuple[int, ...]) -> "Shared":
        return Shared(self.memory.transpose(order), self.dtype)

    def reshape(self, shape: Any) -> "Shared":
        return Shared(self.memory.reshape(shape), self.dtype)

    def load(self, layout: Any) -> Value:
        return value(self.memory.copy())

    def store(self, tile: Any) -> None:
        self.memory[...] = tile


class Descriptor:
    """What the copy engine knows of a tensor."""

    def __init__(self, given: Any, view: Any) -> None:
        self.view, self.dtype, self.layout = view, given.base.dtype, given.layout
        size = int(np.prod(given.block_shape)) * given.base.element_size()
        self.block_type = SimpleNamespace(shape=tuple(given.block_shape), nbytes=size)
        self.itemsize = given.base.element_size()

    def place(self, at: list[Any]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of a tile at these coordinates that lies inside the tensor: in the tensor, and in the tile."""
        first = [int(x) for x in at]
        assert first[-1] * self.itemsize % 16 == 0, "the copy engine takes runs from multiples of 16 bytes on"
        low = [max(x, 0) for x in first]
        high = [min(x + n, size) for x, n, size in zip(first, self.block_type.shape, self.view.shape, strict=True)]
        high = [max(x, y) for x, y in zip(low, high, strict=True)]
        tensor = tuple(slice(*edge) for edge in zip(low, high, strict=True))
        tile = tuple(slice(x - z, y - z) for x, y, z in zip(low, high, first, strict=True))
        return tensor, tile


class Barrier:
    """An mbarrier: arrivals, bytes that are under way, and how often it was completed."""

    def __init__(self) -> None:
        self.count, self.missing, self.bytes, self.completed = 0, 0, 0, 0

    def change(self, arrivals: int, moved: int) -> None:
        self.missing -= arrivals
        self.bytes += moved
        assert self.missing >= 0, "more arrivals than a barrier counts"
        if self.missing == 0 and self.bytes == 0:
            self.completed += 1
            self.missing = self.count


class Barriers:
    def __init__(self, count: int) -> None:
        self.all = [Barrier() for _ in range(count)]
        self.type = SimpleNamespace(shape=(count, 1))

    def index(self, nth: Any) -> Barrier:
        return self.all[int(nth)]


class Product:
    """A matrix product that has been issued: computed when it is waited for."""

    def __init__(self, a: Any, b: Any, acc: Any) -> None:
        self.a, self.b, self.acc, self.done = a, b, acc, None

    def finish(self) -> Value:
        if self.done is None:
            left, right = (x.memory if isinstance(x, Shared) else np.asarray(x) for x in (self.a, self.b))
            product = left.astype(np.float64) @ right.astype(np.float64)
            acc = 0.0 if self.acc is None else self.acc.finish() if isinstance(self.acc, Product) else self.acc
            self.done = value((product + np.asarray(acc)).astype(np.float32))  # type: ignore[assignment]
        return self.done  # type: ignore[return-value]
