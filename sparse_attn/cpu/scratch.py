"""Memory that one worker uses again for every tile, instead of asking the system for fresh pages each time."""

import math

import torch
from torch import Tensor


class Scratch:
    """Buffers by name; each grows to the largest shape asked for. What a buffer holds is undefined when it is taken."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=self.dtype, device="cpu")
        return buffer[:size].view(shape)
