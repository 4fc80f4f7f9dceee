"""Compiles every kernel ahead of time for several GPUs, without a GPU, and checks what each asks for.

    python scripts/compile_kernels.py [--capabilities 8.0 8.6 9.0 10.0] [--head-dims 64 128 256] [--jobs 2] [--registers]

A variant is a kernel, a GPU, a head dim, a dtype, and the parts of the pattern that it reads: "window" has an interval
alone, "full" a long one with columns and extra keys, "union" every part of a main pass, "dilated" a pass that follows them,
"dilated alone" one that follows nothing; of the kernels of anchors, of chosen blocks and of Hopper's `compile_anchors.py`,
`compile_selected.py` and `compile_hopper.py` tell. Exits with 1 if a kernel does not compile, or asks for more shared memory than
a program of that GPU may have; Hopper's fail as well if the assembler puts their products one after the other, or keeps more
than a few numbers in memory. `--registers` tells what ptxas makes of each.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `scripts` stands, if this runs as a file

from scripts import compile_anchors, compile_hopper, compile_selected

SHARED_MEMORY = {(8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
KERNELS = (
    "forward",
    "backward_rows",
    "backward_keys",
    "backward_columns",
    "column_sums",
    "backward_extra",
    "backward_queries",
    *compile_anchors.KERNELS,
    *compile_hopper.KERNELS,
    *compile_selected.KERNELS,
)
PARTS: dict[str, dict[str, Any]] = {
    "window": {"CHUNKS": 0, "ROWS": 0, "COLUMNS": 0, "LISTS": 0, "EXTRA": 0, "EARLIER": -1, "EXCLUDES": False},
    "union": {"CHUNKS": 1, "ROWS": 1, "COLUMNS": 2, "LISTS": 1, "EXTRA": 64, "EARLIER": -1, "EXCLUDES": False},
    "full": {"CHUNKS": 0, "ROWS": 0, "COLUMNS": 1, "LISTS": 0, "EXTRA": 64, "EARLIER": -1, "EXCLUDES": False},
    "dilated alone": {"CHUNKS": 0, "ROWS": 0, "COLUMNS": 0, "LISTS": 0, "EXTRA": 0, "EARLIER": 0, "EXCLUDES": False},
    "dilated": {"CHUNKS": 0, "ROWS": 0, "COLUMNS": 1, "LISTS": 1, "EXTRA": 0, "EARLIER": 0, "EXCLUDES": True},
}


class Variant(NamedTuple):
    """One kernel for one GPU."""

    kernel: str
    capability: tuple[int, int]
    head_dim: int
    dtype: str
    packed: bool
    parts: str

    def __str__(self) -> str:
        major, minor = self.capability
        packed = " packed" if self.packed else ""
        return f"{self.kernel} {self.parts}{packed} {major}.{minor} D{self.head_dim} {self.dtype}"


def main() -> int:
    options = _options()
    failed = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        variants = list(_variants(options))
        compiled = pool.map(compile_variant, variants, [options.registers] * len(variants))
        for variant, (shared, report, error) in zip(variants, compiled, strict=True):
            limit = SHARED_MEMORY[variant.capability]
            error = error or (f"asks for {shared} bytes of shared memory, {limit} are there" if shared > limit else "")
            failed += bool(error)
            print(f"{variant}: {error or f'{shared} bytes of shared memory{report}'}", flush=True)
    print(f"{len(variants)} variants, {failed} failed")
    return 1 if failed else 0


def compile_variant(variant: Variant, registers: bool = False) -> tuple[int, str, str]:
    """Shared memory in bytes, ptxas's report if asked for, and what went wrong, if anything did."""
    if variant.kernel in compile_hopper.KERNELS:
        return _compile_hopper(variant, registers)
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if variant.kernel in compile_selected.KERNELS:
        kernel, constants, types, warps, stages = compile_selected.recipe(
            variant.kernel, variant.capability, variant.head_dim, getattr(torch, DTYPES[variant.dtype]), variant.dtype,
            variant.packed, variant.parts,
        )  # fmt: skip
    elif variant.kernel in compile_anchors.KERNELS:
        kernel, constants, types, warps, stages = compile_anchors.recipe(
            variant.kernel, variant.head_dim, variant.dtype, variant.packed, variant.parts
        )
    else:
        kernel, constants, types, warps, stages = _recipe(variant)
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    given = {
        (kernel.arg_names.index(name),): constants.get(name)
        for name in kernel.arg_names
        if signature[name] == "constexpr"
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=given,
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(kernel.arg_names)
            if signature[name].startswith("*")
            or (
                (name.startswith("stride") or name in ("left", "right", "offset", "span"))
                and signature[name] != "constexpr"
                and not kernel.params[index].do_not_specialize  # a launch does not know these to be multiples either
            )
        },
    )
    major, minor = variant.capability
    try:
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", 10 * major + minor, 32),
            options={"num_warps": warps, "num_stages": stages},
        )
    except Exception as error:  # a compiler's failure of any kind is the finding
        return 0, "", f"does not compile: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    report = _registers(compiled.asm["ptx"], variant.capability) if registers else ""
    return compiled.metadata.shared, report, ""


def _compile_hopper(variant: Variant, registers: bool) -> tuple[int, str, str]:
    kernel, _, head_dim, element, packed, parts = variant
    try:
        compiled = compile_hopper.compiled(kernel, head_dim, element, DTYPES[element], packed, parts)
    except Exception as error:  # a compiler's failure of any kind is the finding
        return 0, "", f"does not compile: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    report = _registers(compiled.asm["ptx"], variant.capability)
    of_columns = packed and "columns" in kernel
    most = compile_hopper.SPILLED_COLUMNS if of_columns else compile_hopper.SPILLED[head_dim]
    spilled = max((int(count) for count in re.findall(r"(\d+) bytes spill", report)), default=most + 1)
    wrong = f"spills {spilled} bytes" if spilled > most else "puts products in a row" if "serialized" in report else ""
    return compiled.metadata.shared, report if registers else "", wrong


def _recipe(variant: Variant) -> compile_selected.Recipe:
    """How a kernel of static patterns is compiled."""
    import importlib

    import torch

    from sparse_attn.kernels.attention import tiles

    dtype = getattr(torch, DTYPES[variant.dtype])
    module = importlib.import_module(f"sparse_attn.kernels.attention.{variant.kernel}")
    kernel = getattr(module, f"{variant.kernel}_kernel")
    no_tile = dict.fromkeys(("backward_rows", "column_sums"), lambda *_: tiles.Tile(64, 64, 4, 1))
    named = no_tile | {"backward_extra": tiles.backward_extra_tile}
    choose = named.get(variant.kernel) or getattr(tiles, f"{variant.kernel}_tile")
    walked = ({"window": 2048, "union": 0}.get(variant.parts, tiles.FAR),)
    by_pattern = variant.kernel in ("forward", "backward_queries")
    tile = choose(variant.capability, variant.head_dim, dtype, *(walked if by_pattern else ()))
    constants = _constants(variant, tile, tiles.padded_head_dim(variant.head_dim), tiles.precision(dtype))
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: _type(name, variant, tile, constants) for name in kernel.arg_names}
    if "step" in types and not variant.parts.startswith("dilated"):
        constants["step"] = 1  # as Triton specialises it
    types = {name: kind for name, kind in types.items() if kind != "constexpr" and name not in constants}
    return compile_selected.Recipe(kernel, constants, types, tile.warps, tile.stages)


def _registers(ptx: str, capability: tuple[int, int]) -> str:
    """Registers and spilled bytes of a thread, and whether ptxas put products in a row."""
    from triton.knobs import nvidia

    suffix = "a" if capability[0] >= 9 else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        done = subprocess.run(
            [nvidia.ptxas.path, "-v", f"-arch=sm_{capability[0]}{capability[1]}{suffix}", str(path), "-o", "/dev/null"],
            capture_output=True, text=True,
        )  # fmt: skip
    told = ("spill", "registers", "serialized")
    lines = [line.strip() for line in done.stderr.splitlines() if any(word in line for word in told)]
    return "; " + "; ".join(lines)


def _constants(variant: Variant, tile: Any, block_d: int, precision: str) -> dict[str, Any]:
    tma = variant.capability[0] >= 9
    columns = tile.n if PARTS[variant.parts]["COLUMNS"] else 0
    return PARTS[variant.parts] | {
        "HAS_INTERVAL": True, "HAS_D_LSE": True, "BLOCK_C": columns, "BLOCK_L": min(tile.n, 64),
        "BLOCK_E": min(tile.n, 64), "ROWS_A_PROGRAM": 64, "SPLITS": 16, "UNCUT": variant.parts == "full",
        "SIDES": 1 if variant.parts == "full" else 2,
        "LIST_TMA": tma, "EXTRA_TMA": tma, "TABLE": variant.packed or variant.parts.startswith("dilated"),
        "PACKED": variant.packed, "GROUP": 4, "D": variant.head_dim, "BLOCK_D": block_d,
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "NEGATE": False, "USE_TMA": tma, "COLUMN_TMA": tma and columns > 0,
        "PRECISION": precision,
    }  # fmt: skip


def _type(name: str, variant: Variant, tile: Any, constants: dict[str, Any]) -> str:
    element = variant.dtype
    of_queries = ("backward_keys", "backward_columns", "backward_extra")
    walked = ("q", "d_out") if variant.kernel in of_queries else ("k", "v") if "BLOCK_C" in constants else ()
    if name in constants:
        return "constexpr"
    if name in walked and constants["USE_TMA"]:
        rows = tile.m if variant.kernel in of_queries else tile.n
        grid = "1, 1, " if variant.parts.startswith("dilated") else "1, "
        return f"tensordesc<{element}[1, {rows}, {grid}{constants['BLOCK_D']}]>"
    if name in ("column_k", "column_v"):
        if not constants["BLOCK_C"]:
            return "constexpr"  # None
        tma = f"tensordesc<{element}[1, {constants['BLOCK_C']}, 1, {constants['BLOCK_D']}]>"
        return tma if constants["COLUMN_TMA"] else f"*{element}"
    parts = {"list_k": ("LISTS", "LIST_TMA", "BLOCK_L"), "extra_k": ("EXTRA", "EXTRA_TMA", "BLOCK_E")}
    count, engine, block = parts.get(name.replace("_v", "_k"), ("", "", ""))
    if engine in constants:
        if constants[count] == 0 or variant.parts.startswith("dilated"):
            return "constexpr"  # None
        tma = f"tensordesc<{element}[1, {constants[block]}, 1, {constants['BLOCK_D']}]>"
        return tma if constants[engine] else f"*{element}"
    if variant.kernel == "backward_columns" and name in ("dk", "dv"):
        return "*fp32"  # sums of splits
    if name in ("lse", "d_lse", "lse2", "delta", "sums"):
        return "*fp32"
    tensors = ("q", "k", "v", "out", "d_out", "dq", "dk", "dv", "extra_k", "extra_v", "d_extra_k", "d_extra_v")
    if name in tensors or name in ("q_rows", "d_rows", "target"):
        return f"*{element}"
    if name.startswith(("stride", "n_", "hop_")) or name in (
        "left",
        "right",
        "step",
        "extra_block",
        "offset",
        "first_column",
    ):
        return "i32"
    return "fp32" if name in ("scale", "scale2") else "*i32"


def _variants(options: argparse.Namespace) -> Iterator[Variant]:
    for text in options.capabilities:
        capability = (int(text.split(".")[0]), int(text.split(".")[1]))
        for head_dim in options.head_dims:
            for dtype in options.dtypes:
                for kernel in options.kernels:
                    if kernel in compile_hopper.KERNELS:
                        known = (
                            capability == (9, 0) and head_dim in compile_hopper.HEAD_DIMS[kernel] and dtype != "fp32"
                        )
                        for packed in (False, True) if options.packed and known else (False,) if known else ():
                            for parts in compile_hopper.parts_of(kernel):
                                if parts in options.parts:
                                    yield Variant(kernel, capability, head_dim, dtype, packed, parts)
                        continue
                    for parts in _parts_of(kernel, options.parts):
                        for packed in (False, True) if options.packed and kernel != "backward_rows" else (False,):
                            yield Variant(kernel, capability, head_dim, dtype, packed, parts)


def _parts_of(kernel: str, asked: list[str]) -> list[str]:
    """The parts that a kernel is compiled for: those asked for, or the one that it knows."""
    of_columns = {"backward_columns": ["union"], "column_sums": ["union"]}
    alone = {"backward_rows": ["window"], **of_columns, "backward_extra": ["union"]}
    own = alone.get(kernel, list(PARTS))
    if kernel in compile_selected.KERNELS:
        own = compile_selected.KERNELS[kernel][1]
    elif kernel in compile_anchors.KERNELS:
        own = compile_anchors.KERNELS[kernel]
    return own if len(own) == 1 else [parts for parts in own if parts in asked]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [f"{major}.{minor}" for major, minor in SHARED_MEMORY]
    parser.add_argument("--capabilities", nargs="+", choices=known, default=["8.0", "8.6", "9.0", "10.0"])
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parts = list(dict.fromkeys((*PARTS, *compile_selected.PARTS, *compile_hopper.PARTS)))
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--packed", action="store_true", help="the packed variants too")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--registers", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
