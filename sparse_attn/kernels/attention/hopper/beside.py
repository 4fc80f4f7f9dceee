"""What a launch hands to Hopper's kernels beside the interval: gathered columns and extra keys, in tiles as keys come."""

from typing import Any

from ..geometry import Geometry
from ..launch import Inputs, gather_columns
from .descriptors import head_first


def beside(inputs: Inputs, where: Geometry, rows: int, keys: int) -> dict[str, Any]:
    """Arguments of a kernel whose programs take so many rows, in tiles of so many keys."""
    device = inputs.k.device
    given: dict[str, Any] = dict.fromkeys(("column_k", "column_v", "column_ranges", "positions", "extra_k", "extra_v"))
    given |= {"extra_block": 1, **beside_constants(where)}
    columns = where.column_tables(device)
    if columns is None:
        given["SIDES"] = 0
    else:
        positions, _ = columns
        column_k, column_v = gather_columns(inputs, where)
        given |= {
            "column_k": head_first(column_k, keys),
            "column_v": head_first(column_v, keys),
            "column_ranges": where.column_ranges(rows, device),
            "positions": positions,
        }
    if where.anchors is not None:
        assert inputs.extra_k is not None
        assert inputs.extra_v is not None
        given |= {
            "extra_k": head_first(inputs.extra_k, keys),
            "extra_v": head_first(inputs.extra_v, keys),
            "extra_block": where.anchors.block,
        }
    return given


def beside_constants(where: Geometry) -> dict[str, Any]:
    """On how many sides of the interval columns stand, and how many extra keys a block of queries has."""
    sides = (1 if where.causal else 2) if where.columns else 0
    return {"SIDES": sides, "EXTRA": where.anchors.extra_keys if where.anchors else 0}


def one_row(where: Geometry, rows: int) -> bool:
    """Whether every block of so many queries sees one row of extra keys, of as many as a product can be wide: a tile of them
    hides none from any query, and can come first."""
    if where.anchors is None or where.anchors.extra_keys not in (16, 32, 64, 128) or where.anchors.block % rows:
        return False
    return all(document.first_position % rows == 0 for document in where.documents)
