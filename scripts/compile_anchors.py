"""What the kernels of anchors are compiled with ahead of time; `scripts/compile_kernels.py` asks.

Parts: "window" has blocks pooled by their means, "union" by learned scores.
"""

from .compile_selected import Recipe

KERNELS = {
    "pool": ["window", "union"],
    "scan": ["union"],
    "backward_scan": ["union"],
    "backward_pool": ["window", "union"],
}
_INPUTS = ("k", "v", "pooled", "summaries", "d_keys", "d_values", "given_k", "given_v", "dk", "dv")


def recipe(name: str, head_dim: int, element: str, packed: bool, parts: str) -> Recipe:
    """How one kernel is compiled, for 64 queries and blocks of 128 tokens."""
    import importlib

    from sparse_attn.kernels.anchors import backward_scan, pool, scan
    from sparse_attn.kernels.attention.tiles import padded_head_dim

    learned = parts == "union"
    block_r, block_d = scan.scan_tile(64, head_dim) if name == "scan" else (0, padded_head_dim(head_dim))
    rows = {"pool": 16, "scan": block_r, "backward_scan": backward_scan.backward_scan_rows(64)}.get(name, 0)
    tokens = pool.tokens_a_tile(128, head_dim) // (2 if name == "backward_pool" else 1)
    kernel = getattr(importlib.import_module(f"sparse_attn.kernels.anchors.{name}"), f"{name}_kernel")
    constants = {
        "R": 64, "D": head_dim, "BLOCK_R": rows, "BLOCK_D": block_d, "BLOCK_T": tokens, "TILES": 32, "LEARNED": learned,
        "GIVEN": True, "PACKED": packed, "GROUP": scan.GROUP if name == "scan" else backward_scan.GROUP,
    }  # fmt: skip
    types = {}
    for argument in kernel.arg_names:
        if argument in constants or (argument in ("pooling", "d_pooling") and not learned):
            continue
        if argument in ("tokens", "rows"):
            if packed:
                types[argument] = "*i32"
        elif argument.startswith(("stride", "n_")) or argument == "block":
            types[argument] = "i32"
        elif argument == "scale":
            types[argument] = "fp32"
        else:
            types[argument] = f"*{element}" if argument in _INPUTS else "*fp32"
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    return Recipe(kernel, constants, types, 4 if "pool" in name else 1, 3)
