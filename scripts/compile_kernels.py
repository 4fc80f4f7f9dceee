"""Compiles every kernel ahead of time for several GPUs, without a GPU, and checks what each asks for.

    python scripts/compile_kernels.py [--capabilities 8.0 8.6 9.0 10.0] [--head-dims 64 128 256] [--jobs 2]

Exits with 1 if a kernel does not compile, or asks for more shared memory than a program of that GPU may have.
"""

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

SHARED_MEMORY = {(8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
KERNELS = ("forward", "backward_rows", "backward_keys", "backward_columns", "backward_queries")


class Variant(NamedTuple):
    """One kernel for one GPU."""

    kernel: str
    capability: tuple[int, int]
    head_dim: int
    dtype: str
    packed: bool


def main() -> int:
    options = _options()
    failed = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        variants = list(_variants(options))
        for variant, (shared, error) in zip(variants, pool.map(compile_variant, variants), strict=True):
            limit = SHARED_MEMORY[variant.capability]
            error = error or (f"asks for {shared} bytes of shared memory, {limit} are there" if shared > limit else "")
            failed += bool(error)
            name = (
                f"{variant.kernel} {variant.capability[0]}.{variant.capability[1]} D{variant.head_dim} {variant.dtype}"
            )
            print(f"{name}{' packed' if variant.packed else ''}: {error or f'{shared} bytes of shared memory'}")
    print(f"{len(variants)} variants, {failed} failed")
    return 1 if failed else 0


def compile_variant(variant: Variant) -> tuple[int, str]:
    """Shared memory in bytes, and what went wrong, if anything did."""
    import importlib

    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sparse_attn.kernels.attention import tiles

    dtype = getattr(torch, DTYPES[variant.dtype])
    module = importlib.import_module(f"sparse_attn.kernels.attention.{variant.kernel}")
    kernel = getattr(module, f"{variant.kernel}_kernel")
    if variant.kernel == "backward_rows":
        tile = tiles.Tile(64, 64, 4, 1)
    else:
        tile = getattr(tiles, f"{variant.kernel}_tile")(variant.capability, variant.head_dim, dtype)
    constants = {
        "HAS_INTERVAL": True, "HAS_CHUNK": True, "HAS_D_LSE": True, "BLOCK_C": min(tile.n, 64), "ROWS": 64,
        "PACKED": variant.packed, "GROUP": 4, "D": variant.head_dim, "BLOCK_D": tiles.padded_head_dim(variant.head_dim),
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "NEGATE": False, "USE_TMA": variant.capability[0] >= 9,
        "PRECISION": tiles.precision(dtype),
    }  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: _type(name, variant, tile, constants) for name in kernel.arg_names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(kernel.arg_names)
            if signature[name].startswith("*") or name.startswith("stride")
        },
    )
    major, minor = variant.capability
    try:
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", 10 * major + minor, 32),
            options={"num_warps": tile.warps, "num_stages": tile.stages},
        )
    except Exception as error:  # a compiler's failure of any kind is the finding
        return 0, f"does not compile: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return compiled.metadata.shared, ""


def _type(name: str, variant: Variant, tile: Any, constants: dict[str, Any]) -> str:
    element = variant.dtype
    walked = {"forward": ("k", "v"), "backward_queries": ("k", "v"), "backward_keys": ("q", "d_out")}
    if name in constants:
        return "constexpr"
    if name in walked.get(variant.kernel, ()) and constants["USE_TMA"]:
        rows = tile.m if variant.kernel == "backward_keys" else tile.n
        return f"tensordesc<{element}[1, {rows}, 1, {constants['BLOCK_D']}]>"
    if variant.kernel == "backward_columns" and name in ("dk", "dv"):
        return "*fp32"  # sums of splits
    if name in ("column_k", "column_v", "q", "k", "v", "out", "d_out", "dq", "dk", "dv"):
        return f"*{element}"
    if name in ("lse", "d_lse", "lse2", "delta"):
        return "*fp32"
    if name in ("blocks", "documents", "positions", "column_positions", "column_ranges"):
        return "*i32"
    return "fp32" if name in ("scale", "scale2") else "i32"


def _variants(options: argparse.Namespace) -> Iterator[Variant]:
    for text in options.capabilities:
        capability = (int(text.split(".")[0]), int(text.split(".")[1]))
        for head_dim in options.head_dims:
            for dtype in options.dtypes:
                for kernel in KERNELS:
                    for packed in (False, True) if options.packed and kernel != "backward_rows" else (False,):
                        yield Variant(kernel, capability, head_dim, dtype, packed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [f"{major}.{minor}" for major, minor in SHARED_MEMORY]
    parser.add_argument("--capabilities", nargs="+", choices=known, default=["8.0", "8.6", "9.0", "10.0"])
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--packed", action="store_true", help="the packed variants too")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
