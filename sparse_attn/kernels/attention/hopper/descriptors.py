"""How tensors are handed to Hopper's kernels."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..geometry import Geometry
from ..launch import Inputs

_ELEMENTS = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16, torch.float32: gl.float32}


def head_first(tensor: Tensor, rows: int) -> TensorDescriptor:
    """A descriptor over ``[B, H, N, D]`` of a tensor ``[B, N, H, D]``, of which a tile has so many rows of one head."""
    batch, tokens, heads, head_dim = tensor.shape
    by_batch, by_token, by_head, _ = tensor.stride()
    block, layout = _tile(rows, head_dim, tensor.dtype)
    shape, strides = [batch, heads, tokens, head_dim], [by_batch, by_head, by_token, 1]
    return TensorDescriptor(tensor, shape, strides, block, layout)


def head_first_tiles(rows: int, *names: str) -> dict[str, Callable[[Tensor], TensorDescriptor]]:
    """How a `Launch` makes descriptors of so many rows a tile of the tensors of these names."""
    return dict.fromkeys(names, partial(head_first, rows=rows))


def rows_tiles(rows: int, *names: str) -> dict[str, Callable[[Tensor], TensorDescriptor]]:
    """The same of tensors of numbers a row, see `rows_of`."""
    return dict.fromkeys(names, partial(rows_of, rows=rows))


@lru_cache(maxsize=64)
def _tile(rows: int, head_dim: int, dtype: torch.dtype) -> tuple[list[int], gl.NVMMASharedLayout]:
    """Shape and layout of a tile: to work the layout out anew takes longer than all else of a descriptor."""
    block = [1, 1, rows, head_dim]
    return block, gl.NVMMASharedLayout.get_default_for(block, _ELEMENTS[dtype])


def copyable(tensor: Tensor) -> Tensor:
    """The tensor on strides that the bulk copy engine takes: positive multiples of 16 bytes."""
    fits = all(stride > 0 and stride * tensor.element_size() % 16 == 0 for stride in tensor.stride()[:-1])
    return tensor if fits and tensor.data_ptr() % 16 == 0 else tensor.contiguous()


def rows_of(tensor: Tensor, rows: int) -> TensorDescriptor:
    """A descriptor over ``[B * H, N]`` of two numbers a row, ``[B, H, N]``, of which a tile has so many of one head."""
    flat = tensor.flatten(0, 1)
    layout = gl.NVMMASharedLayout(0, 32, 2)
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [1, rows], layout)


def walk_arguments(
    inputs: Inputs, where: Geometry, axis: str, rows: int, programs: int
) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and fixed arguments of a kernel whose programs take blocks of so many queries (axis "q") or keys ("k")."""
    q, k = inputs.q, inputs.k
    n_queries, n_keys = q.shape[1], k.shape[1]
    heads, name = (q.shape[2], "n_heads") if axis == "q" else (k.shape[2], "n_kv_heads")
    assert where.main is not None
    n_blocks, table = where.blocks(where.main, rows, axis, q.device)
    total = n_blocks * heads * q.shape[0]
    fixed = {
        "blocks": table, "documents": where.document_table(q.device), "parameters": where.numbers(q.device),
        "n_blocks": n_blocks, name: heads, "n_queries": n_queries, "n_keys": n_keys, "offset": n_keys - n_queries,
        "left": where.left, "right": where.right, "total": total, "num_warps": 4,
    }  # fmt: skip
    return (min(total, programs),), fixed


@lru_cache(maxsize=16)
def programs_of(device: torch.device) -> int:
    """A persistent program for each multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count
