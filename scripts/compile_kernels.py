"""Compiles every kernel ahead of time for several GPUs, without a GPU, and checks what each asks for.

    python scripts/compile_kernels.py [--capabilities 8.0 8.6 9.0 10.0] [--head-dims 64 128 256] [--jobs 2] [--registers]

A variant is a kernel, a GPU, a head dim, a dtype, and the parts of the pattern that it reads: "window" has an interval
alone, "full" a long one with columns and extra keys, "union" every part of a main pass, "dilated" a pass that follows them,
"dilated alone" one that follows nothing. Exits with 1 if a kernel does not compile, or
asks for more shared memory than a program of that GPU may have. `--registers` tells what ptxas makes of each. Hopper's
kernels, which Triton's interpreter cannot run, are compiled for 9.0 alone ("window", or "chunks" too), and fail as well if
the assembler puts their products one after the other or keeps more than a few numbers in memory.
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

SHARED_MEMORY = {(8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
GLUON_KERNELS = ("hopper_forward", "hopper_backward_keys", "hopper_backward_queries")
SPILLED = (
    128  # bytes a thread that are let pass in them: numbers kept outside the loops over tiles, most in packed documents
)
KERNELS = (
    "forward",
    "backward_rows",
    "backward_keys",
    "backward_columns",
    "backward_extra",
    "backward_queries",
    *GLUON_KERNELS,
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


class GluonVariant(NamedTuple):
    """One of Hopper's kernels; shaped like the portable kernels' variants."""

    kernel: str
    capability: tuple[int, int]
    head_dim: int
    dtype: str
    packed: bool
    parts: str

    def __str__(self) -> str:
        packed = " packed" if self.packed else ""
        return f"{self.kernel}{packed} {self.parts} 9.0 D{self.head_dim} {self.dtype}"


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


def compile_variant(variant: Variant | GluonVariant, registers: bool = False) -> tuple[int, str, str]:
    """Shared memory in bytes, ptxas's report if asked for, and what went wrong, if anything did."""
    if isinstance(variant, GluonVariant):
        return _compile_gluon(variant, registers)
    import importlib

    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sparse_attn.kernels.attention import tiles

    dtype = getattr(torch, DTYPES[variant.dtype])
    module = importlib.import_module(f"sparse_attn.kernels.attention.{variant.kernel}")
    kernel = getattr(module, f"{variant.kernel}_kernel")
    named = {"backward_rows": lambda *_: tiles.Tile(64, 64, 4, 1), "backward_extra": tiles.backward_keys_tile}
    choose = named.get(variant.kernel) or getattr(tiles, f"{variant.kernel}_tile")
    walked = ({"window": 2048, "union": 0}.get(variant.parts, tiles.FAR),)
    by_pattern = variant.kernel in ("forward", "backward_queries")
    tile = choose(variant.capability, variant.head_dim, dtype, *(walked if by_pattern else ()))
    constants = _constants(variant, tile, tiles.padded_head_dim(variant.head_dim), tiles.precision(dtype))
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: _type(name, variant, tile, constants) for name in kernel.arg_names}
    given = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    given |= {(kernel.arg_names.index(name),): None for name in kernel.arg_names if signature[name] == "constexpr"
              and name not in constants}  # fmt: skip
    if "step" in signature and not variant.parts.startswith("dilated"):
        signature["step"] = "constexpr"  # 1, as Triton specialises it
        given[(kernel.arg_names.index("step"),)] = 1
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=given,
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(kernel.arg_names)
            if signature[name].startswith("*")
            or ((name.startswith("stride") or name in ("left", "right", "offset")) and signature[name] != "constexpr")
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
        return 0, "", f"does not compile: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    report = _registers(compiled.asm["ptx"], variant.capability) if registers else ""
    return compiled.metadata.shared, report, ""


def _compile_gluon(variant: GluonVariant, registers: bool) -> tuple[int, str, str]:
    try:
        compiled = _compiled_gluon(variant)
    except Exception as error:  # a compiler's failure of any kind is the finding
        return 0, "", f"does not compile: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    report = _registers(compiled.asm["ptx"], variant.capability)
    spilled = max((int(count) for count in re.findall(r"(\d+) bytes spill", report)), default=SPILLED + 1)
    wrong = (
        f"spills {spilled} bytes" if spilled > SPILLED else "puts products in a row" if "serialized" in report else ""
    )
    return compiled.metadata.shared, report if registers else "", wrong


def _compiled_gluon(variant: GluonVariant) -> Any:
    import importlib
    from types import SimpleNamespace

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    name = variant.kernel.removeprefix("hopper_")
    module = importlib.import_module(f"sparse_attn.kernels.attention.hopper.{name}")
    kernel = getattr(module, f"{name}_kernel")
    where = SimpleNamespace(chunks=int(variant.parts == "chunks"), packed=variant.packed)
    constants = getattr(module, f"{name}_constants")(where, 4, variant.head_dim)
    rows, keys = constants.pop("ROWS", 64), constants.pop("KEYS", 128 if name == "forward" else 64)
    if not variant.packed:
        constants |= {"blocks": None, "documents": None}
    sizes = {
        "q": rows,
        "out": rows,
        "d_out": rows,
        "dq_out": rows,
        "k": keys,
        "v": keys,
        "dk_out": keys,
        "dv_out": keys,
    }
    types = {argument: _tile_type(variant, size) for argument, size in sizes.items()}
    types |= dict.fromkeys(("out_rows", "dq_rows", "dk_rows", "dv_rows"), f"*{variant.dtype}")
    types |= {"lse": "*fp32", "scale": "fp32", "scale2": "fp32"}
    types |= dict.fromkeys(("lse2", "delta"), _run_type(rows) if name == "backward_keys" else "*fp32")
    types |= dict.fromkeys(("blocks", "documents", "parameters"), "*i32")
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


def _tile_type(variant: GluonVariant, rows: int) -> str:
    from triton.experimental.gluon import language as gl

    block = [1, 1, rows, variant.head_dim]
    layout = gl.NVMMASharedLayout.get_default_for(block, getattr(gl, DTYPES[variant.dtype]))
    return f"tensordesc<{variant.dtype}{block},{layout!r}>"


def _run_type(rows: int) -> str:
    from triton.experimental.gluon import language as gl

    return f"tensordesc<fp32[1, {rows}],{gl.NVMMASharedLayout(0, 32, 2)!r}>"


def _registers(ptx: str, capability: tuple[int, int]) -> str:
    """Registers and spilled bytes of a thread."""
    from triton.knobs import nvidia

    suffix = "a" if capability[0] >= 9 else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        done = subprocess.run(
            [nvidia.ptxas.path, "-v", f"-arch=sm_{capability[0]}{capability[1]}{suffix}", str(path), "-o", "/dev/null"],
            capture_output=True, text=True,
        )  # fmt: skip
    lines = [
        line.strip()
        for line in done.stderr.splitlines()
        if "spill" in line or "registers" in line or "serialized" in line
    ]
    return "; " + "; ".join(lines)


def _constants(variant: Variant, tile: Any, block_d: int, precision: str) -> dict[str, Any]:
    tma = variant.capability[0] >= 9
    columns = tile.n if PARTS[variant.parts]["COLUMNS"] else 0
    return PARTS[variant.parts] | {
        "HAS_INTERVAL": True, "HAS_D_LSE": True, "BLOCK_C": columns, "BLOCK_L": min(tile.n, 64),
        "BLOCK_E": min(tile.n, 64), "ROWS_A_PROGRAM": 64, "UNCUT": variant.parts == "full",
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
    if name in ("lse", "d_lse", "lse2", "delta"):
        return "*fp32"
    tensors = ("q", "k", "v", "out", "d_out", "dq", "dk", "dv", "extra_k", "extra_v", "d_extra_k", "d_extra_v")
    if name in tensors or name in ("q_rows", "d_rows"):
        return f"*{element}"
    if name.startswith(("stride", "n_", "hop_")) or name in ("left", "right", "step", "extra_block", "offset"):
        return "i32"
    return "fp32" if name in ("scale", "scale2") else "*i32"


def _variants(options: argparse.Namespace) -> Iterator[Variant | GluonVariant]:
    if "9.0" in options.capabilities:
        for kernel in (name for name in options.kernels if name in GLUON_KERNELS):
            for head_dim in (size for size in options.head_dims if size in (64, 128)):
                for packed in (False, True) if options.packed else (False,):
                    parts = "chunks" if packed else "window"
                    for dtype in (name for name in options.dtypes if name != "fp32"):
                        yield GluonVariant(kernel, (9, 0), head_dim, dtype, packed, parts)
    for text in options.capabilities:
        capability = (int(text.split(".")[0]), int(text.split(".")[1]))
        for head_dim in options.head_dims:
            for dtype in options.dtypes:
                for kernel in (name for name in options.kernels if name not in GLUON_KERNELS):
                    alone = {"backward_rows": ["window"], "backward_columns": ["union"], "backward_extra": ["union"]}
                    for parts in alone.get(kernel, options.parts):
                        for packed in (False, True) if options.packed and kernel != "backward_rows" else (False,):
                            yield Variant(kernel, capability, head_dim, dtype, packed, parts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [f"{major}.{minor}" for major, minor in SHARED_MEMORY]
    parser.add_argument("--capabilities", nargs="+", choices=known, default=["8.0", "8.6", "9.0", "10.0"])
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--packed", action="store_true", help="the packed variants too")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--registers", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
