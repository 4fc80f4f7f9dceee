"""Launches of kernels with many arguments, of which most are the same every time.

Triton looks at every argument of every launch: what it may be compiled for, whether it has been. With some forty arguments,
of which some are tensor descriptors that check themselves, that takes a hundred microseconds, as long as a short sequence takes
altogether. A `Launch` goes through Triton once and keeps the compiled kernel; later launches only exchange tensors and numbers.
"""

from collections.abc import Callable, Hashable
from typing import Any

import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver

_KNOWN = triton.__version__.split(".")[:2] == ["3", "6"]  # how a compiled kernel takes its arguments differs by release


def alike(*tensors: Tensor | None) -> Hashable:
    """What a kernel is compiled for and launched with, but for addresses: equal for calls that one `Launch` serves."""
    return tuple([None if x is None else (x.dtype, x.device, x.shape, x.stride()) for x in tensors])


class Launch:
    """A kernel, its grid, and those of its arguments that stay.

    Args:
        kernel, grid: As for ``kernel[grid](...)``.
        fixed: Arguments that are the same at every launch, options such as ``num_warps`` among them.
        tiles: For each tensor that is handed over as a descriptor, by name, what makes one of it.

    A launch names all other arguments: tensors that are `alike` the first launch's and, as those, on addresses that are
    multiples of 16 or are no such; and numbers that the kernel is not specialised for.
    """

    def __init__(
        self, kernel: Any, grid: tuple[int, ...], fixed: dict[str, Any], tiles: dict[str, Callable[[Tensor], Any]]
    ) -> None:
        self._kernel, self._grid, self._fixed, self._tiles = kernel, grid, fixed, tiles
        self._compiled: Any = None
        self._values: list[Any] = []
        self._places: dict[str, tuple[int, Any]] = {}
        self._device = -1

    def __call__(self, **moving: Any) -> None:
        if self._compiled is None:
            self._first(moving)
            return
        values = self._values.copy()
        for name, value in moving.items():
            at, descriptor = self._places[name]
            values[at] = value if descriptor is None else _moved(descriptor, value)
        grid = self._grid
        compiled, stream = self._compiled, driver.active.get_current_stream(self._device)
        compiled.run(
            *grid, stream, compiled.function, compiled.packed_metadata, compiled.launch_metadata(grid, stream, *values),
            knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *values,
        )  # fmt: skip

    def _first(self, moving: dict[str, Any]) -> None:
        made = {name: self._tiles[name](value) if name in self._tiles else value for name, value in moving.items()}
        compiled = self._kernel[self._grid](**self._fixed, **made)
        if not _KNOWN or not isinstance(compiled, triton.compiler.CompiledKernel):
            return  # also of an interpreted kernel: every launch goes this way
        names = self._kernel.arg_names
        self._values = [self._fixed.get(name) for name in names]
        self._places = {
            name: (names.index(name), _emptied(value) if name in self._tiles else None) for name, value in made.items()
        }
        self._grid = (*self._grid, 1, 1)[:3]
        self._device = driver.active.get_current_device()
        self._compiled = compiled


def _emptied(descriptor: Any) -> Any:
    """A descriptor that keeps no tensor alive."""
    return _moved(descriptor, None)


def _moved(descriptor: Any, tensor: Tensor | None) -> Any:
    """The same descriptor of another tensor, which is not checked again."""
    made = object.__new__(type(descriptor))
    made.__dict__.update(descriptor.__dict__)
    made.base = tensor
    return made
