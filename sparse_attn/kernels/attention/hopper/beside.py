"""What a launch hands to Hopper's kernels beside the interval: gathered columns and extra keys, in tiles as keys come."""

from typing import Any

import torch
from torch import Tensor

from ..geometry import Geometry
from ..launch import Inputs, gather_columns

BESIDE = ("column_k", "column_v", "extra_k", "extra_v")  # arguments that come in tiles of keys


def beside_tensors(inputs: Inputs, where: Geometry) -> dict[str, Tensor]:
    """Keys and values of columns and of anchors, where the pattern has them, by the names of a kernel's arguments."""
    found = {}
    if where.columns and where.column_tables(inputs.k.device) is not None:
        found["column_k"], found["column_v"] = gather_columns(inputs, where)
    if where.anchors is not None:
        assert inputs.extra_k is not None
        assert inputs.extra_v is not None
        found |= {"extra_k": inputs.extra_k, "extra_v": inputs.extra_v}
    return found


def beside_arguments(where: Geometry, rows: int, device: torch.device) -> dict[str, Any]:
    """The other arguments of a kernel whose programs take so many rows: which columns and extra keys a block sees."""
    columns = where.column_tables(device)
    absent = () if where.anchors else ("extra_k", "extra_v")
    given: dict[str, Any] = dict.fromkeys(absent) | {"extra_block": where.anchors.block if where.anchors else 1}
    given |= beside_constants(where)
    if columns is None:
        return given | dict.fromkeys(("column_k", "column_v", "column_ranges", "positions")) | {"SIDES": 0}
    return given | {"column_ranges": where.column_ranges(rows, device), "positions": columns[0]}


def beside_constants(where: Geometry) -> dict[str, Any]:
    """On how many sides of the interval columns stand, and how many extra keys a block of queries has."""
    sides = (1 if where.causal else 2) if where.columns else 0
    return {"SIDES": sides, "EXTRA": where.anchors.extra_keys if where.anchors else 0}


def one_row(where: Geometry, rows: int) -> bool:
    """Whether so many queries, from a multiple of that on, see one row of extra keys, of as many as a product can be wide and a
    tile holds: none is hidden from any of them, and they can come first."""
    if where.anchors is None or where.anchors.extra_keys not in (16, 32, 64) or where.anchors.block % rows:
        return False
    return all(document.first_position % rows == 0 for document in where.documents)
