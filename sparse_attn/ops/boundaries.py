"""Boundaries of packed documents as numbers: checked, and read off a device once."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

Lengths = Sequence[int] | Tensor


def read_boundaries(lengths: Lengths) -> tuple[int, ...]:
    """The boundaries as numbers; the host waits for a CUDA tensor once, and again when PyTorch has changed it.

    Layers and calls that share a tensor share what was read of it. A tensor made in inference mode does not tell when it
    changes: it is read, and waited for, at each call, and a list is the better argument; so is one in a compiled region.
    """
    if not isinstance(lengths, Tensor):
        return tuple(map(int, lengths))
    if not lengths.is_cuda or torch.compiler.is_compiling():
        return tuple(lengths.tolist())
    try:
        from ..kernels.attention.registration import boundaries
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return tuple(lengths.tolist())
    read = boundaries(lengths)
    assert read is not None
    return read


def document_bounds(lengths: Lengths | None, n: int, name: str = "cu_seqlens") -> list[int]:
    """Document boundaries as numbers, checked; without documents the whole is one. Those of a device: `read_boundaries`.

    Raises:
        ValueError: no integers, or boundaries that do not run from 0 to n.
    """
    if lengths is None:
        return [0, n]
    if isinstance(lengths, Tensor):
        whole = lengths.dim() == 1 and not (lengths.is_floating_point() or lengths.is_complex())
        what = f"{lengths.dtype}, shape {tuple(lengths.shape)}"
    else:
        whole = isinstance(lengths, Sequence) and all(
            hasattr(x, "__index__") and not isinstance(x, bool) for x in lengths
        )
        what = repr(lengths)
    if not whole:
        raise ValueError(f"{name} must be a one-dimensional integer tensor or list, got {what}")
    bounds = list(read_boundaries(lengths))
    if not bounds or bounds[0] != 0 or bounds[-1] != n or any(a > b for a, b in pairwise(bounds)):
        raise ValueError(f"{name} must run from 0 to {n} and never decrease, got {bounds}")
    return bounds


def row_bounds(cu_seqlens: Sequence[int], block: int) -> list[int]:
    """Where each document's rows of extra keys begin, ceil(length / block) rows a document; and their end.

    >>> row_bounds([0, 300, 310], 128)
    [0, 3, 4]
    """
    bounds = [0]
    for start, stop in pairwise(cu_seqlens):
        bounds.append(bounds[-1] - (start - stop) // block)
    return bounds
