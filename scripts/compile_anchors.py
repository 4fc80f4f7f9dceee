"""What the kernels of anchors are compiled with ahead of time; `scripts/compile_kernels.py` asks.

Parts: "window" has blocks pooled by their means and states of one element, "union" learned scores and given states.
"""

from .compile_selected import Recipe

KERNELS = {
    "pool": ["window", "union"],
    "scan": ["window", "union"],
    "backward_chunks": ["union"],
    "backward_carry": ["window", "union"],
    "backward_scan": ["union"],
    "backward_pool": ["window", "union"],
}
_INPUTS = ("k", "v", "pooled", "summaries", "d_keys", "d_values", "given_k", "given_v", "dk", "dv")
# Pointers that are None in "window".
_OF_UNION = {
    "pool": ("pooling",),
    "scan": ("total_before",),
    "backward_carry": ("d_total_after", "d_keys_after", "d_values_after"),
    "backward_pool": ("pooling", "d_pooling"),
}


def recipe(name: str, head_dim: int, element: str, packed: bool, parts: str) -> Recipe:
    """How one kernel is compiled, for 64 queries and blocks of 128 tokens."""
    import importlib

    from sparse_attn.kernels.anchors import backward_chunks, backward_pool, backward_scan, pool, scan, spans
    from sparse_attn.kernels.attention.tiles import padded_head_dim

    learned = parts == "union"
    rows = {"pool": 16, "backward_scan": backward_scan.backward_scan_rows(64, head_dim)}.get(name, 0)
    tokens = (
        backward_pool.tokens_a_tile(128, head_dim) if name == "backward_pool" else pool.tokens_a_tile(128, head_dim)
    )
    file = {"backward_carry": "backward_chunks"}.get(name, name)
    kernel = getattr(importlib.import_module(f"sparse_attn.kernels.anchors.{file}"), f"{name}_kernel")
    constants = {
        "R": 64, "D": head_dim, "H": 8, "BLOCK_R": rows, "BLOCK_D": padded_head_dim(head_dim), "BLOCK_T": tokens,
        "TILES": 64 // backward_scan.backward_scan_rows(64, head_dim), "LEARNED": learned, "INITIAL": not learned, "AFTER": learned,
        "GIVEN": True, "PACKED": packed, "CHUNK": spans.CHUNK,
        "GROUP": {"scan": scan.GROUP, "backward_carry": backward_chunks.FAR}.get(name, backward_chunks.GROUP),
    }  # fmt: skip
    types = {}
    for argument in kernel.arg_names:
        if argument in constants or (argument in _OF_UNION.get(name, ()) and not learned):
            continue
        if argument in ("tokens", "rows", "chunks", "sequence_chunks"):
            if packed:
                types[argument] = "*i32"
        elif argument.startswith(("stride", "n_")) or argument == "block":
            types[argument] = "i32"
        elif argument == "scale":
            types[argument] = "fp32"
        else:
            types[argument] = f"*{element}" if argument in _INPUTS else "*fp32"
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    return Recipe(kernel, constants, types, 4 if name == "backward_pool" else 1, 3)
