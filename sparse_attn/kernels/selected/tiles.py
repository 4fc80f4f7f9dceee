"""Tile sizes of the kernels of chosen blocks, by GPU, head dim and dtype."""

from typing import NamedTuple

import torch
import triton

from ..attention.tiles import Capability, Tile, padded_head_dim

MOST_HEADS = 128  # query heads that share a choice


class RowTile(NamedTuple):
    """Queries and heads whose rows stand in one tile, keys first, and what a program of it asks for."""

    queries: int
    heads: int
    warps: int
    stages: int


def most_keys(capability: Capability, head_dim: int, dtype: torch.dtype) -> int:
    """Keys of a block that a program holds; larger blocks are cut."""
    block_d = padded_head_dim(head_dim)
    if dtype == torch.float32:
        return 16 if block_d == 256 else 32
    return 64 if capability[0] >= 9 or block_d <= 128 else 32


def query_tile(capability: Capability, head_dim: int, dtype: torch.dtype, rows: int, heads: int) -> RowTile:
    """Tile of the kernel that walks from a tile of queries to its blocks; rows choose together, heads share the choice."""
    block_d = padded_head_dim(head_dim)
    most = (16 if block_d == 256 else 32) if dtype == torch.float32 else 64
    queries = min(triton.next_power_of_2(rows), most)
    together = min(triton.next_power_of_2(heads), most // queries)
    queries = max(queries, 16 // together)
    stages = 1 if dtype == torch.float32 else (3 if block_d <= 128 else 2) if capability[0] == 9 else 2
    stages = 1 if capability in ((8, 6), (8, 9)) and block_d == 256 else stages
    return RowTile(queries, together, 4, stages)


def block_tile(capability: Capability, head_dim: int, dtype: torch.dtype) -> Tile:
    """Tile of the kernel that attends from a block of keys to those who chose it: m rows, at most n keys."""
    block_d = padded_head_dim(head_dim)
    keys = most_keys(capability, head_dim, dtype)
    if dtype == torch.float32:
        return Tile(16 if block_d == 256 else 32, keys, 4, 1)
    # Nothing is loaded ahead on Hopper: more programs at a time wait for each other's rows (benchmarks/NOTES.md).
    few = capability[0] == 9 if block_d <= 128 else capability[0] == 8
    return Tile(64, keys, 4, 1 if few else 2)


def block_gradient_tile(capability: Capability, head_dim: int, dtype: torch.dtype) -> Tile:
    """Tile of the kernel that sums a block's dk and dv: m rows at a time, at most n keys."""
    block_d = padded_head_dim(head_dim)
    keys = most_keys(capability, head_dim, dtype)
    if dtype == torch.float32:
        return Tile(16 if block_d == 256 else 32, keys, 4, 1)
    if capability[0] >= 9:
        return Tile(32, keys, 4, 2) if block_d <= 128 else Tile(64, keys, 8, 1)
    return Tile(32 if block_d <= 128 else 16, keys, 8, 1)


def merge_warps(heads: int, block_d: int) -> int:
    """Warps of the kernel that sums what a query's slots hold: a thread takes 16 numbers of each."""
    return max(1, min(8, heads * block_d // 512))
