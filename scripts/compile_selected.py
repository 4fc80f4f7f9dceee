"""What the kernels of chosen blocks are compiled with ahead of time; `scripts/compile_kernels.py` asks.

Parts: "window" has an interval beside the choice, "sinks" columns too, "union" every static part that a choice can meet.
"""

from typing import Any, NamedTuple

PARTS: dict[str, dict[str, Any]] = {
    "window": {"CHUNKS": 0, "ROWS": 0, "COLUMNS": 0, "LISTS": 0, "PASSES": 0, "ALWAYS": False},
    "sinks": {"CHUNKS": 0, "ROWS": 0, "COLUMNS": 1, "LISTS": 0, "PASSES": 0, "ALWAYS": False},
    "union": {"CHUNKS": 1, "ROWS": 1, "COLUMNS": 2, "LISTS": 1, "PASSES": 1, "ALWAYS": True},
}
KERNELS = {
    "settle": ("settle", ["window"]),
    "select": ("select", ["window"]),
    "merge": ("merge", ["window"]),
    "mark": ("lists", ["window"]),
    "list": ("lists", ["window"]),
    "forward_tiles": ("forward_tiles", list(PARTS)),
    "forward_blocks": ("forward_blocks", list(PARTS)),
    "merge_slots": ("forward_blocks", ["window"]),
    "backward_blocks": ("backward_blocks", list(PARTS)),
}
_WIDE = ("q", "k", "v", "out", "slot_out", "slot_dq", "d_out", "out_a", "out_b")
_FLOATS = ("lse", "slot_lse", "lse2", "delta", "dk", "dv", "lse_a", "lse_b", "scores")


class Recipe(NamedTuple):
    """A kernel, its constants, the types of its other arguments, and the warps and stages of a program."""

    kernel: Any
    constants: dict[str, Any]
    types: dict[str, str]
    warps: int
    stages: int


def recipe(
    name: str, capability: tuple[int, int], head_dim: int, dtype: Any, element: str, packed: bool, parts: str
) -> Recipe:
    """How one kernel is compiled, for 32 chosen blocks of 64 keys, and 4 query heads to a KV head."""
    import importlib

    from sparse_attn.kernels.attention.tiles import padded_head_dim, precision
    from sparse_attn.kernels.selected import tiles

    kernel = getattr(importlib.import_module(f"sparse_attn.kernels.selected.{KERNELS[name][0]}"), f"{name}_kernel")
    size, block_d = tiles.most_keys(capability, head_dim, dtype), padded_head_dim(head_dim)
    rows = tiles.query_tile(capability, head_dim, dtype, 64, 4)
    blocks = tiles.block_gradient_tile if name == "backward_blocks" else tiles.block_tile
    tile = blocks(capability, head_dim, dtype)
    tma = capability[0] >= 9
    known = PARTS[parts] | {
        "HAS_INTERVAL": True, "UNCUT": True, "LIMITED": parts == "union", "CAUSAL": True, "PACKED": packed, "SIZE": size,
        "BLOCK_N": size, "SLOTS": 2048 // size, "BLOCK_S": 2048 // size, "SLOT_BITS": 12, "ITEM": 256, "K": 32,
        "UNROLL": 8,
        "BLOCK_K": 32, "PARTS": 64 // size, "BLOCK_R": 64, "BLOCK_Q": 1024, "BLOCK_I": 64, "BY_TILE": False,
        "QUERIES": rows.queries, "HEADS": 4, "BLOCK_M": tile.m, "D": head_dim, "BLOCK_D": block_d, "NEGATE": False,
        "USE_TMA": tma, "WEIGHTED": True, "PRECISION": precision(dtype),
    }  # fmt: skip
    warps, stages = tile.warps, tile.stages
    if name == "forward_tiles":
        known["HEADS"], warps, stages = rows.heads, rows.warps, rows.stages
    elif name == "merge_slots":
        warps, stages = tiles.merge_warps(4, block_d), 1
    elif name not in ("forward_blocks", "backward_blocks"):
        stages = 1
        own = {"mark": {"BLOCK_Q": 64}, "select": {"BLOCK_R": 1, "BLOCK_B": 1024, "ONE_RANGE": True}}
        known |= own.get(name, {"BLOCK_R": 8192 // block_d if name == "merge" else 64})
        warps = 1 if name == "select" else 4
    constants = {key: value for key, value in known.items() if key in kernel.arg_names}
    walked = f"tensordesc<{element}[1, {size}, 1, {block_d}]>"
    types = {}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        if name == "forward_tiles" and argument in ("k", "v") and tma:
            types[argument] = walked
        elif argument in _WIDE or argument in _FLOATS:
            types[argument] = f"*{element if argument in _WIDE else 'fp32'}"
        elif argument in ("map", "times"):
            types[argument] = "*u8" if argument == "map" else "*i16"
        elif argument in ("scale", "scale2"):
            types[argument] = "fp32"
        elif argument.startswith(("stride", "n_", "limit_")) or argument in (
            "first", "stop", "span", "offset", "heads", "group", "tile_rows", "left", "right", "width",
        ):  # fmt: skip
            types[argument] = "i32"
        else:
            types[argument] = "*i32"
    return Recipe(kernel, constants, types, warps, stages)
