"""Launches of kernels with many arguments, of which most are the same every time.

Triton looks at every argument of every launch: what it may be compiled for, whether it has been. With some forty arguments,
of which some are tensor descriptors that check themselves, that takes a hundred microseconds, as long as a short sequence takes
altogether. A `Launch` goes through Triton once and keeps the compiled kernel; later launches only exchange tensors and scales.
Calls that are never alike, such as documents packed anew for each step, go through Triton every time.
"""

from collections.abc import Callable, Hashable
from typing import Any

import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver

_KNOWN = triton.__version__.split(".")[:2] == ["3", "6"]  # how a compiled kernel takes its arguments differs by release
_MOST = 64  # launches of one `Launches`; a model's layers make a few


def alike(*tensors: Tensor | None) -> Hashable:
    """What a kernel is compiled for and launched with, but for addresses: equal for calls that one `Launch` serves."""
    return tuple([None if x is None else (x.dtype, x.device, x.shape, x.stride()) for x in tensors])


def strides(names: str, tensor: Tensor | None) -> dict[str, int]:
    """A tensor's first strides as arguments: "ob ot oh" are stride_ob, stride_ot and stride_oh. Those of no tensor are 0."""
    found = [f"stride_{name}" for name in names.split()]
    return dict.fromkeys(found, 0) if tensor is None else dict(zip(found, tensor.stride(), strict=False))


class Launch:
    """A kernel, its grid, and those of its arguments that stay.

    Args:
        kernel, grid: As for ``kernel[grid](...)``.
        fixed: Arguments that are the same at every launch, options such as ``num_warps`` among them.
        tiles: For each tensor that is handed over as a descriptor, by name, what makes one of it.

    Every launch names all other arguments: tensors that are `alike` the first launch's and stand on multiples of 16 bytes
    where those did; and floats, which no kernel is compiled for. Triton's hooks of launches are called; its other settings
    (debugging, instrumentation) stay what they were at the first launch.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        fixed: dict[str, Any],
        tiles: dict[str, Callable[[Tensor], Any]] | None = None,
    ) -> None:
        self._kernel, self._grid, self._fixed, self._tiles = kernel, grid, fixed, tiles or {}
        self._compiled: Any = None
        self._values: list[Any] = []
        self._places: dict[str, tuple[int, Any]] = {}
        self._device = -1

    def __call__(self, **moving: Any) -> None:
        if self._compiled is None:
            self._first(moving)
            return
        assert len(moving) == len(self._places), "a launch names all arguments that are not fixed"
        values = self._values.copy()
        for name, value in moving.items():
            at, descriptor = self._places[name]
            values[at] = value if descriptor is None else _moved(descriptor, value)
        compiled, stream = self._compiled, driver.active.get_current_stream(self._device)
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        metadata = compiled.launch_metadata(self._grid, stream, *values)
        compiled.run(*self._grid, stream, compiled.function, compiled.packed_metadata, metadata, enter, leave, *values)

    def _first(self, moving: dict[str, Any]) -> None:
        made = {name: self._tiles[name](value) if name in self._tiles else value for name, value in moving.items()}
        compiled = self._kernel[self._grid](**self._fixed, **made)
        if not _KNOWN or not isinstance(compiled, triton.compiler.CompiledKernel):
            return  # also of an interpreted kernel: every launch goes this way
        names = self._kernel.arg_names
        self._values = [self._fixed.get(name) for name in names]
        self._places = {
            name: (names.index(name), _moved(value, None) if name in self._tiles else None)
            for name, value in made.items()
        }
        self._grid = (*self._grid, 1, 1)[:3]
        self._device = driver.active.get_current_device()
        self._compiled = compiled  # last: another thread may be looking


def _moved(descriptor: Any, tensor: Tensor | None) -> Any:
    """The same descriptor of another tensor, which is not checked again; of none, to keep without keeping a tensor alive."""
    made = object.__new__(type(descriptor))
    made.__dict__.update(descriptor.__dict__)
    made.base = tensor
    return made


class Launches:
    """Launches by what tells calls apart, a bounded number of them."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Launch] = {}

    def kept(self, key: Hashable, make: Callable[[], Launch]) -> Launch:
        """The launch of a key: a kernel, `alike` of its tensors, and what else `make` reads."""
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _MOST:
                self._kept.clear()
            found = self._kept[key] = make()
        return found
