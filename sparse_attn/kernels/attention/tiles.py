"""Tile sizes by GPU, head dim and dtype, and how tensors are handed to the kernels."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

if TYPE_CHECKING:
    from .geometry import Geometry, Walk

FAR = 1 << 30  # stands for an unlimited side; position arithmetic stays inside 32 bits
LOG2_E = math.log2(math.e)

Capability = tuple[int, int]


class Tile(NamedTuple):
    """Query rows and keys of a tile, warps of a program, and stages of its loads."""

    m: int
    n: int
    warps: int
    stages: int


def forward_tile(capability: Capability, head_dim: int, dtype: torch.dtype, walked: int = FAR) -> Tile:
    """Tile of the forward kernel. Hopper's were measured (benchmarks/NOTES.md); the others fit their shared memory.

    Args:
        walked: Keys that a query walks along at most, in one run; 0: in several, as columns and lists make it. Short
            walks want small tiles, of which one starts while another ends.
    """
    block_d = padded_head_dim(head_dim)
    if dtype == torch.float32:
        return Tile(32, 16, 4, 1) if block_d == 256 else Tile(64, 32, 4, 1)
    if capability[0] == 9 and block_d == 128 and walked <= 8192:
        return Tile(64, 64, 4, 3 if walked else 2)
    if capability[0] == 9:
        return (
            Tile(128, 128, 4, 3)
            if block_d <= 64
            else Tile(128, 128 if block_d == 128 else 64, 8, 3 if block_d == 128 else 2)
        )
    return Tile(128, 64, 4, 3) if block_d <= 64 else Tile(128, 32, 4, 2) if block_d == 128 else Tile(64, 32, 4, 2)


def backward_keys_tile(capability: Capability, head_dim: int, dtype: torch.dtype) -> Tile:
    """Tile of the kernel that sums dk and dv: m query rows at a time walk past n keys."""
    block_d = padded_head_dim(head_dim)
    if dtype == torch.float32:
        return Tile(16, 16, 4, 1) if block_d == 256 else Tile(32, 32, 4, 1)
    if capability[0] == 9:
        return Tile(128, 64, 4, 2) if block_d <= 64 else Tile(64, 64, 4, 2) if block_d == 128 else Tile(32, 64, 8, 1)
    return Tile(32, 64, 4, 2) if block_d <= 64 else Tile(32, 64, 8, 1) if block_d == 128 else Tile(16, 32, 8, 1)


def backward_extra_tile(capability: Capability, head_dim: int, dtype: torch.dtype) -> Tile:
    """Tile of the kernel that sums extra keys' dk and dv. Reading queries bounds it: few rows at a time, more on their way."""
    tile = backward_keys_tile(capability, head_dim, dtype)
    return Tile(32, 64, 4, 3) if tile == (64, 64, 4, 2) else tile


def backward_queries_tile(capability: Capability, head_dim: int, dtype: torch.dtype, walked: int = FAR) -> Tile:
    """Tile of the kernel that sums dq: m query rows walk along n keys at a time."""
    block_d = padded_head_dim(head_dim)
    if dtype == torch.float32:
        return Tile(16, 16, 4, 1) if block_d == 256 else Tile(32, 32, 4, 1)
    if capability[0] == 9 and block_d == 128 and walked == 0:
        return Tile(64, 64, 4, 2)
    if capability[0] == 9:
        return Tile(128, 64, 8, 3) if block_d <= 128 else Tile(64, 32, 8, 2)
    return Tile(64, 32, 4, 2) if block_d <= 64 else Tile(64, 32, 8, 1) if block_d == 128 else Tile(32, 16, 8, 1)


def backward_columns_tile(capability: Capability, head_dim: int, dtype: torch.dtype) -> Tile:
    """Tile of the kernel that sums the columns' dk and dv: m query rows at a time walk past n columns."""
    tile = backward_keys_tile(capability, head_dim, dtype)
    return tile if tile.m <= 64 else Tile(64, tile.n, tile.warps, tile.stages)


def padded_head_dim(head_dim: int) -> int:
    """Head dims are padded to a power of two, at least 16: what a matrix instruction takes."""
    return max(16, triton.next_power_of_2(head_dim))


def precision(dtype: torch.dtype) -> str:
    """float32 inputs are multiplied exactly: they are there for checking."""
    return "ieee" if dtype == torch.float32 else "tf32"


def row_major(tensor: Tensor) -> Tensor:
    """The tensor with its head dim contiguous, which the kernels take for granted."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def can_use_tma(capability: Capability, where: "Geometry", walk: "Walk", *tensors: Tensor) -> bool:
    """Whether the bulk copy engine can read the tensors: Hopper and later, on addresses that are multiples of 16.

    A dilated pass reads them as whole grids, which packed documents, a rest or a shift of positions do not give.
    """
    whole = not walk.dilated or (
        not where.packed
        and where.documents[0].first_position == 0
        and all(tensor.shape[1] % walk.step == 0 for tensor in tensors)
    )
    return whole and capability[0] >= 9 and all(map(_on_multiples_of_16, tensors))


def _on_multiples_of_16(tensor: Tensor) -> bool:
    """Whether every row begins on a multiple of 16 bytes. Plain loops: every call asks, and a short one takes no longer."""
    size = tensor.element_size()
    for stride in tensor.stride()[:-1]:
        if stride <= 0 or stride * size % 16:
            return False
    return tensor.data_ptr() % 16 == 0 and 0 not in tensor.shape


def tile_source(tensor: Tensor, rows: int, use_tma: bool, walk: "Walk | None" = None) -> Tensor | TensorDescriptor:
    """What a kernel reads tiles of so many rows from: the tensor, or a descriptor over ``[B, N, H, D]``, dilated over
    ``[B, N / step, step, H, D]``."""
    if not use_tma:
        return tensor
    width = padded_head_dim(tensor.shape[-1])
    batch, tokens, heads, head_dim = tensor.shape
    by_batch, by_token, by_head, _ = tensor.stride()
    if walk is not None and walk.dilated:
        shape = [batch, tokens // walk.step, walk.step, heads, head_dim]
        strides = [by_batch, by_token * walk.step, by_token, by_head, 1]
        return TensorDescriptor(tensor, shape, strides, [1, rows, 1, 1, width])
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, rows, 1, width])
