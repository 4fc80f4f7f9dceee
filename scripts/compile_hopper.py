"""How Hopper's kernels in Gluon are compiled ahead of time; `scripts/compile_kernels.py` asks.

Triton's interpreter cannot run them: that they compile, keep their products apart and spill next to nothing is all that a
machine without the GPU can tell. Parts: "window" has an interval alone, "anchors" extra keys beside it, a row of which serves a
warpgroup's queries, "union" chunks and columns too, "crooked" the same with rows of extra keys that some warpgroups share.
"""

from types import SimpleNamespace
from typing import Any

HEAD_DIMS = {
    "hopper_forward": (64, 128, 256),
    "hopper_backward_keys": (64, 128),
    "hopper_backward_keys_wide": (256,),
    "hopper_backward_values_wide": (256,),  # the same kernel's other launch
    "hopper_backward_queries": (64, 128, 256),
    "hopper_backward_columns": (64, 128),
    "hopper_backward_columns_apart": (64, 128),  # few columns: warpgroups take the queries in turn
}
KERNELS = tuple(HEAD_DIMS)
PARTS = ("window", "anchors", "union", "crooked")
# Bytes a thread that are let pass, by head dim: numbers kept outside the loops over tiles, most in packed documents; of columns
# there also in the loops over a document's first and last tile, and at head dim 64, in the kernel of dk and dv, two words a tile:
# three warpgroups with these are faster than two without.
SPILLED = {64: 384, 128: 224, 256: 416}
SPILLED_COLUMNS = 384


def parts_of(kernel_name: str) -> tuple[str, ...]:
    """With what a kernel is compiled: those of keys know nothing of extra keys."""
    reads_extra = kernel_name in ("hopper_forward", "hopper_backward_queries")
    return PARTS if reads_extra else ("window", "union")


def compiled(kernel_name: str, head_dim: int, element: str, dtype: str, packed: bool, parts: str) -> Any:
    """One kernel compiled for compute capability 9.0, 4 query heads to a KV head.

    Args:
        element, dtype: The same type as Triton's signatures and as Gluon's language name it: "bf16" and "bfloat16".
    """
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    name = kernel_name.removeprefix("hopper_").removesuffix("_apart").replace("values_wide", "keys_wide")
    module = importlib.import_module(f"sparse_attn.kernels.attention.hopper.{name}")
    kernel = getattr(module, f"{name}_kernel")
    union = parts in ("union", "crooked")
    anchors = SimpleNamespace(extra_keys=64, block=100 if parts == "crooked" else 128) if parts != "window" else None
    documents = [SimpleNamespace(first_position=0)]
    where = SimpleNamespace(
        chunks=int(union), packed=packed, columns=int(union), causal=not packed, anchors=anchors, documents=documents
    )
    further = {"backward_columns": kernel_name.endswith("_apart"), "backward_keys_wide": "values" in kernel_name}
    own = (further[name],) if name in further else ()
    constants = getattr(module, f"{name}_constants")(where, 4, head_dim, *own)
    rows, keys = constants.pop("ROWS", 64), constants.pop("KEYS", 64)
    absent = [] if packed else ["documents"] if name == "backward_columns" else ["blocks", "documents"]
    absent += [] if union else ["column_k", "column_v", "column_ranges"]
    absent += [] if anchors else ["extra_k", "extra_v"]
    absent += [] if union or name == "backward_columns" else ["positions"]
    constants |= {argument: None for argument in absent if argument in kernel.arg_names}
    by_row = dict.fromkeys(("q", "out", "d_out", "dq_out"), _tile_type(element, dtype, rows, head_dim))
    keyed: tuple[str, ...] = ("k", "v", "dk_out", "dv_out", "column_k", "column_v", "extra_k", "extra_v")
    keyed += ("out",) if name == "backward_keys_wide" else ()
    by_key = dict.fromkeys(keyed, _tile_type(element, dtype, keys, head_dim))
    types = by_row | by_key | dict.fromkeys(("out_rows", "dq_rows", "dk_rows", "dv_rows"), f"*{element}")
    types |= {"lse": "*fp32", "dk_sums": "*fp32", "dv_sums": "*fp32", "scale": "fp32", "scale2": "fp32"}
    by_run = name.startswith(("backward_keys", "backward_columns"))
    types |= dict.fromkeys(("lse2", "delta"), _run_type(rows) if by_run else "*fp32")
    types |= dict.fromkeys(("blocks", "documents", "parameters", "column_ranges", "positions"), "*i32")
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "i32") for argument in kernel.arg_names
    }
    source = GluonASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(argument),): value for argument, value in constants.items()},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, argument in enumerate(kernel.arg_names)
            if signature[argument].startswith("*")
        },
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


def _tile_type(element: str, dtype: str, rows: int, head_dim: int) -> str:
    from triton.experimental.gluon import language as gl

    block = [1, 1, rows, head_dim]
    layout = gl.NVMMASharedLayout.get_default_for(block, getattr(gl, dtype))
    return f"tensordesc<{element}{block},{layout!r}>"


def _run_type(rows: int) -> str:
    from triton.experimental.gluon import language as gl

    return f"tensordesc<fp32[1, {rows}],{gl.NVMMASharedLayout(0, 32, 2)!r}>"
