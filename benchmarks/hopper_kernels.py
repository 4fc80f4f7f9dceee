"""Times each of Hopper's attention kernels alone, also with other tiles and schedules than those in use; checked first.

    python benchmarks/hopper_kernels.py [--only "forward D64"] [--commit abc123] [--out FILE]

A variant is a kernel, a head dim, and what differs from the constants in use. Each is compared with the portable kernel in
float32 and with itself, bit by bit, before any is timed; one that is wrong is not timed. Window 2048: causal, Hq 32, Hkv 8 at
head dim 128; bidirectional, Hq = Hkv = 32 at head dim 64. Columns: the patterns of `COLUMNS`, and with the kernel the sums of its
programs; the portable kernel's times stand beside. TFLOP/s count the products that the kernel makes of kept pairs.
"""

import argparse
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.testing import do_bench

from sparse_attn import parse
from sparse_attn.kernels.attention.backward_rows import backward_rows
from sparse_attn.kernels.attention.geometry import Geometry, geometry
from sparse_attn.kernels.attention.launch import Gradients, Inputs

LAUNCHERS = {n: n for n in ("forward", "backward_queries", "backward_keys")}
LAUNCHERS |= {"backward_columns": "add_backward_columns"}
PORTABLE = {n: getattr(import_module(f"sparse_attn.kernels.attention.{n}"), run) for n, run in LAUNCHERS.items()}
HOPPER = {n: import_module(f"sparse_attn.kernels.attention.hopper.{n}") for n in PORTABLE}
IN_USE = {n: getattr(module, f"{n}_constants") for n, module in HOPPER.items()}
FLOPS = {
    "forward": 4,
    "backward_queries": 6,
    "backward_keys": 8,
    "backward_columns": 8,
}  # for a pair, a head and a dimension
LENGTHS = {64: (4096, 8192, 16384, 32768), 128: (4096, 32768, 131072)}
HEADS = {64: (32, 32), 128: (32, 8)}
HOPPER_CAPABILITY = (9, 0)
# Causal: pattern, length, query and KV heads; each is checked at a shorter length first.
COLUMNS = (
    ("window(2048) | sinks(4)", 32768, 32, 8),
    ("window(1024) | sinks(4) | strided(1024)", 32768, 8, 2),
    ("window(1024) | sinks(4) | strided(1024)", 131072, 8, 2),
    ("window(1024) | sinks(4) | strided(1024)", 1048576, 8, 2),
)
CHECKED_COLUMNS = ("window(700) | sinks(4)", "window(200) | strided(16)", "window(200) | sinks(4) | strided(9)")


class Variant(NamedTuple):
    kernel: str
    head_dim: int
    differs: dict[str, Any]

    @property
    def name(self) -> str:
        differs = ", ".join(f"{name} {value}" for name, value in self.differs.items())
        return f"{self.kernel} D{self.head_dim}{f': {differs}' if differs else ''}"


VARIANTS = [
    Variant("forward", 64, {}),
    Variant("forward", 64, {"TURNS": True}),
    Variant("forward", 64, {"SLOTS": 6}),
    Variant("forward", 64, {"CONSUMERS": 4, "REGISTERS": 112}),
    Variant("forward", 64, {"CONSUMERS": 4, "REGISTERS": 112, "TURNS": True}),
    Variant("forward", 64, {"CONSUMERS": 2, "REGISTERS": 240}),
    Variant("forward", 64, {"CONSUMERS": 2, "REGISTERS": 240, "KEYS": 128}),
    Variant("forward", 128, {}),
    Variant("forward", 128, {"TURNS": False}),
    *(Variant(kernel, head_dim, {}) for kernel in ("backward_queries", "backward_keys") for head_dim in (64, 128)),
    Variant("backward_columns", 64, {}),
    Variant("backward_columns", 128, {}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of variants' names")
    parser.add_argument("--commit", help="what is timed, where there is no git to ask")
    parser.add_argument("--out", type=Path, help="a JSON file, written after each variant")
    options = parser.parse_args()
    rows = []
    for variant in VARIANTS:
        if variant.name.startswith(tuple(options.only)):
            errors = check(variant)
            right = max(errors) < 6e-3
            timed = measure_columns if variant.kernel == "backward_columns" else measure
            rows.append({"variant": variant.name, "errors": errors, "times": timed(variant) if right else {}})
            times = "  ".join(f"{name} {row[0]:.3f} ms {row[-1]:.0f}" for name, row in rows[-1]["times"].items())
            print(f"{variant.name}: {times if right else f'WRONG {errors}'}", flush=True)
            if options.out:
                options.out.write_text(json.dumps(result(rows, options.commit), indent=1) + "\n")


def result(rows: list[dict[str, Any]], commit: str | None) -> dict[str, Any]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit or subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "units": "milliseconds: median, 20th and 80th percentile; TFLOP/s",
        "rows": rows,
    }


def check(variant: Variant) -> list[float]:
    """Relative errors of each result, at 2,500 tokens; infinite if a run differs from the one before it."""
    patterns = CHECKED_COLUMNS if variant.kernel == "backward_columns" else ("window(700)",)
    return [found for pattern in patterns for found in check_one(variant, pattern)]


def check_one(variant: Variant, pattern: str) -> list[float]:
    inputs, d_out, where = tensors(variant, 2500, pattern)
    wide = Inputs(*(tensor.float() for tensor in inputs if tensor is not None))
    expected = prepared(PORTABLE[variant.kernel], variant, wide, d_out.float(), where)()
    run = prepared(chosen(variant), variant, inputs, d_out, where)
    got = run()
    for _ in range(5):
        if not all(torch.equal(a, b) for a, b in zip(listed(got), listed(run()), strict=True)):
            return [float("inf")]
    pairs = zip(listed(got), listed(expected), strict=True)
    return [((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in pairs]


def measure(variant: Variant) -> dict[str, list[float]]:
    """By length (and of `full()` at 32K): milliseconds and TFLOP/s."""
    heads, _ = HEADS[variant.head_dim]
    found = {}
    for T in LENGTHS[variant.head_dim]:
        for pattern in ("window(2048)", "full()") if (T, variant.head_dim) == (32768, 128) else ("window(2048)",):
            inputs, d_out, where = tensors(variant, T, pattern)
            run = prepared(chosen(variant), variant, inputs, d_out, where)
            times = do_bench(run, warmup=15, rep=80, quantiles=[0.5, 0.2, 0.8])
            flops = FLOPS[variant.kernel] * heads * variant.head_dim * parse(pattern).pairs(T, causal=where.causal)
            found[f"{pattern} {T // 1024}K"] = [*times, flops / times[0] / 1e9]
    return found


def measure_columns(variant: Variant) -> dict[str, list[float]]:
    """By pattern, length and heads: milliseconds and TFLOP/s, of this kernel and of the portable one."""
    found = {}
    for pattern, T, Hq, Hkv in COLUMNS:
        inputs, d_out, where = tensors(variant, T, pattern, (Hq, Hkv), causal=True)
        pairs = parse(pattern).pairs(T, causal=True) - parse(pattern.split(" | ")[0]).pairs(T, causal=True)
        for name, kernel in (("", chosen(variant)), ("portable, ", PORTABLE[variant.kernel])):
            run = prepared(kernel, variant, inputs, d_out, where, fresh=False)
            times = do_bench(run, warmup=15, rep=80, quantiles=[0.5, 0.2, 0.8])
            flops = FLOPS[variant.kernel] * Hq * variant.head_dim * pairs
            found[f"{name}{pattern} {T // 1024}K Hq {Hq}"] = [*times, flops / times[0] / 1e9]
    return found


def tensors(
    variant: Variant, T: int, pattern: str, heads: tuple[int, int] | None = None, *, causal: bool | None = None
) -> tuple[Inputs, Tensor, Geometry]:
    Hq, Hkv = HEADS[variant.head_dim] if heads is None else heads
    causal = variant.head_dim == 128 if causal is None else causal
    q, k, v, d_out = (
        torch.randn(1, T, heads, variant.head_dim, device="cuda", dtype=torch.bfloat16) for heads in (Hq, Hkv, Hkv, Hq)
    )
    return Inputs(q, k, v), d_out, geometry(parse(pattern), T, T, causal, None, None)


def prepared(
    kernel: Callable[..., Any],
    variant: Variant,
    inputs: Inputs,
    d_out: Tensor,
    where: Geometry,
    *,
    fresh: bool = True,
) -> Callable[[], Any]:
    """A call of a launcher, Hopper's or the portable one, with what it needs of the forward pass.

    Args:
        fresh: What adds to dk and dv adds to zeros each time, which takes longer than adding to what is there.
    """
    scale = variant.head_dim**-0.5
    last = (HOPPER_CAPABILITY,) if kernel in PORTABLE.values() else ()
    if variant.kernel == "forward":
        return lambda: kernel(inputs, where, scale, *last)
    out, lse = PORTABLE["forward"](inputs, where, scale, HOPPER_CAPABILITY)
    delta, lse2 = backward_rows(out, d_out, lse, None)
    gradients = Gradients(d_out, lse2, delta)
    if variant.kernel != "backward_columns":
        return lambda: kernel(inputs, gradients, where, scale, *last)
    sums = tuple(torch.zeros_like(inputs.k) for _ in range(2))

    def added() -> tuple[Tensor, ...]:
        into = tuple(map(torch.zeros_like, sums)) if fresh else sums
        kernel(*into, inputs, gradients, where, scale, *last)
        return into

    return added


def chosen(variant: Variant) -> Callable[..., Any]:
    """The kernel's launcher, which asks for these constants from now on."""
    module = HOPPER[variant.kernel]
    setattr(module, f"{variant.kernel}_constants", lambda *of: IN_USE[variant.kernel](*of) | variant.differs)
    return getattr(module, LAUNCHERS[variant.kernel])  # type: ignore[no-any-return]


def listed(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


if __name__ == "__main__":
    main()
