"""Times each of Hopper's attention kernels alone, also with other tiles and schedules than those in use; checked first.

    python benchmarks/hopper_kernels.py [--only "forward D64"] [--portable] [--commit abc123] [--out FILE]

A variant is a kernel, a head dim, and what differs from the constants in use. Each is compared with the portable kernel in
float32 and with itself, bit by bit, before any is timed; one that is wrong is not timed. `SHAPES` says on what: bidirectional at
head dim 64, causal at others. Columns' gradients, causal: `COLUMNS`, with the sums of the kernel's programs. TFLOP/s count the
products that the kernel makes of kept pairs.
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
from sparse_attn.kernels.attention.hopper import keys_kernel
from sparse_attn.kernels.attention.launch import Gradients, Inputs

LAUNCHERS = {n: n for n in ("forward", "backward_queries", "backward_keys")}
LAUNCHERS |= {"backward_columns": "add_backward_columns"}
PORTABLE = {n: getattr(import_module(f"sparse_attn.kernels.attention.{n}"), run) for n, run in LAUNCHERS.items()}
HOPPER = {n: import_module(f"sparse_attn.kernels.attention.hopper.{n}") for n in (*LAUNCHERS, "backward_keys_wide")}
IN_USE = {n: getattr(module, f"{n}_constants") for n, module in HOPPER.items()}
# For a pair, a head and a dimension.
FLOPS = {"forward": 4, "backward_queries": 6, "backward_keys": 8, "backward_columns": 8}
HOPPER_CAPABILITY = (9, 0)


class Shape(NamedTuple):
    T: int
    pattern: str
    Hq: int
    Hkv: int

    @property
    def name(self) -> str:
        return f"{self.pattern} {self.T // 1024}K {self.Hq}/{self.Hkv}"


SHAPES = {
    64: [Shape(T, "window(2048)", 32, 32) for T in (4096, 8192, 16384, 32768)],
    128: [
        *(Shape(T, "window(2048)", 32, 8) for T in (4096, 32768, 131072)),
        Shape(32768, "full()", 32, 8),
    ],
    256: [
        *(Shape(T, "window(1024)", 8, 4) for T in (4096, 32768, 131072)),  # Gemma 3 4B
        Shape(32768, "window(512)", 4, 1),  # Gemma 3 1B
        Shape(32768, "window(2048)", 32, 8),
        Shape(32768, "full()", 8, 4),
    ],
}


COLUMNS = [
    Shape(32768, "window(2048) | sinks(4)", 32, 8),
    *(Shape(T, "window(1024) | sinks(4) | strided(1024)", 8, 2) for T in (32768, 131072, 1048576)),
]
CHECKED_COLUMNS = ("window(700) | sinks(4)", "window(200) | strided(16)", "window(200) | sinks(4) | strided(9)")


class Variant(NamedTuple):
    kernel: str
    head_dim: int
    differs: dict[str, Any]

    @property
    def name(self) -> str:
        differs = ", ".join(f"{name} {value}" for name, value in self.differs.items())
        return f"{self.kernel} D{self.head_dim}{f': {differs}' if differs else ''}"

    @property
    def own(self) -> str:
        """The name of Hopper's kernel."""
        return keys_kernel(self.head_dim) if self.kernel == "backward_keys" else self.kernel

    @property
    def of_columns(self) -> bool:
        return self.kernel == "backward_columns"

    def pairs(self, shape: Shape) -> int:
        """Pairs of a head that the kernel works on: of columns, those outside the first term's interval."""
        causal = self.causal
        whole, *_ = shape.pattern.split(" | ")
        return parse(shape.pattern).pairs(shape.T, causal=causal) - (
            parse(whole).pairs(shape.T, causal=causal) if self.of_columns else 0
        )

    @property
    def causal(self) -> bool:
        return self.head_dim != 64 or self.of_columns


VARIANTS = [
    Variant("forward", 64, {}),
    Variant("forward", 64, {"CONSUMERS": 2, "REGISTERS": 240}),
    Variant("forward", 128, {}),
    Variant("forward", 128, {"CONSUMERS": 2, "REGISTERS": 240}),
    Variant("forward", 256, {}),
    *(Variant(kernel, head_dim, {}) for kernel in ("backward_queries", "backward_keys") for head_dim in (64, 128, 256)),
    Variant("backward_queries", 64, {"CONSUMERS": 2, "REGISTERS": 240}),
    Variant("backward_keys", 64, {"CONSUMERS": 2, "REGISTERS": 240}),
    *(Variant("backward_columns", head_dim, {}) for head_dim in (64, 128)),
    Variant("backward_queries", 256, {"KEYS": 32, "SLOTS": 3, "V_SLOTS": 3}),
    Variant("backward_queries", 256, {"KEYS": 32, "SLOTS": 4, "V_SLOTS": 2}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of variants' names")
    parser.add_argument("--portable", action="store_true", help="time the portable kernel beside each")
    parser.add_argument("--commit", help="what is timed, where there is no git to ask")
    parser.add_argument("--out", type=Path, help="a JSON file, written after each variant")
    options = parser.parse_args()
    rows = []
    for variant in VARIANTS:
        if variant.name.startswith(tuple(options.only)):
            errors = check(variant)
            right = max(errors) < 6e-3
            rows.append({"variant": variant.name, "errors": errors, "times": {}})
            if right:
                rows[-1]["times"] = measure(variant, chosen(variant))
            if right and options.portable:
                rows[-1]["portable"] = measure(variant, PORTABLE[variant.kernel])
            print(f"{variant.name}: {listed_times(rows[-1]['times']) if right else f'WRONG {errors}'}", flush=True)
            if "portable" in rows[-1]:
                print(f"    portable: {listed_times(rows[-1]['portable'])}", flush=True)
            if options.out:
                options.out.write_text(json.dumps(result(rows, options.commit), indent=1) + "\n")


def listed_times(times: dict[str, list[float]]) -> str:
    return "  ".join(f"{name} {row[0]:.3f} ms {row[-1]:.0f}" for name, row in times.items())


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
    patterns = CHECKED_COLUMNS if variant.of_columns else ("window(700)",)
    heads = SHAPES[variant.head_dim][0]
    return [error for pattern in patterns for error in check_one(variant, Shape(2500, pattern, heads.Hq, heads.Hkv))]


def check_one(variant: Variant, shape: Shape) -> list[float]:
    run = chosen(variant)
    inputs, d_out, where = tensors(variant, shape)
    wide = Inputs(*(tensor.float() for tensor in inputs if tensor is not None))
    expected = prepared(PORTABLE[variant.kernel], variant, wide, d_out.float(), where)()
    run = prepared(run, variant, inputs, d_out, where)
    got = run()
    for _ in range(5):
        if not all(torch.equal(a, b) for a, b in zip(listed(got), listed(run()), strict=True)):
            return [float("inf")]
    pairs = zip(listed(got), listed(expected), strict=True)
    return [((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in pairs]


def measure(variant: Variant, kernel: Callable[..., Any]) -> dict[str, list[float]]:
    """By shape: milliseconds and TFLOP/s."""
    found = {}
    for shape in COLUMNS if variant.of_columns else SHAPES[variant.head_dim]:
        inputs, d_out, where = tensors(variant, shape)
        run = prepared(kernel, variant, inputs, d_out, where, fresh=False)
        times = do_bench(run, warmup=15, rep=80, quantiles=[0.5, 0.2, 0.8])
        flops = FLOPS[variant.kernel] * shape.Hq * variant.head_dim * variant.pairs(shape)
        found[shape.name] = [*times, flops / times[0] / 1e9]
    return found


def tensors(variant: Variant, shape: Shape) -> tuple[Inputs, Tensor, Geometry]:
    T, pattern, Hq, Hkv = shape
    q, k, v, d_out = (
        torch.randn(1, T, heads, variant.head_dim, device="cuda", dtype=torch.bfloat16) for heads in (Hq, Hkv, Hkv, Hq)
    )
    return Inputs(q, k, v), d_out, geometry(parse(pattern), T, T, variant.causal, None, None)


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
    module = HOPPER[variant.own]
    geometry.cache_clear()  # a geometry keeps the launches that it was used for, with the constants of then
    setattr(module, f"{variant.own}_constants", lambda *of: IN_USE[variant.own](*of) | variant.differs)
    return getattr(module, LAUNCHERS.get(variant.own, variant.own))  # type: ignore[no-any-return]


def listed(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


if __name__ == "__main__":
    main()
