"""Memory that one worker uses again for every tile, instead of asking the system for fresh pages each time."""

import math

import torch
from torch import Tensor

VIEWS = 256


class Scratch:
    """Buffers by name; each grows to the largest shape asked for. What a buffer holds is undefined when it is taken."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[tuple[str | int, ...], Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        view = self._views.get((name, *shape))  # making a view costs as much as a small operation
        if view is None:
            view = self._view(name, shape)
        return view

    def _view(self, name: str, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or len(self._views) > VIEWS:
            self._views.clear()
            if buffer is None or buffer.numel() < size:
                buffer = self._buffers[name] = torch.empty(size, dtype=self.dtype, device="cpu")
        view = self._views[name, *shape] = buffer[:size].view(shape)
        return view
