"""Attention on a CPU: a window with sinks against PyTorch's dense causal attention, checked first, in one run.

    python benchmarks/cpu_attention.py [--lengths 4096 8192 16384] [--dtypes fp32 bf16] [--repeats 5] [--out FILE]

Answers come first: output and gradients at 2,048 tokens against the float64 oracle, within the error budget; and, at each
length, sampled rows of the output. Then both are timed in turn, forward and forward + backward. `of ideal` is the speed-up
over dense attention divided by dense pairs / kept pairs, what a perfect implementation would gain. Last, the growth of
memory and time with the length. Prints a table and writes JSON.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from sparse_attn import Full, Sinks, Window, attention
from sparse_attn.testing.judge_attention import judge_attention

PATTERN = Window(1024) | Sinks(4)
HQ, HKV, D = 8, 2, 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEMORY_LENGTHS = (16384, 32768, 65536)


def main() -> int:
    options = _options()
    if options.memory_of:
        return _report_memory(options.memory_of)
    torch.manual_seed(0)
    console = Console(stderr=True)
    rows = []
    work = [(length, name) for length in options.lengths for name in options.dtypes]
    for length, name in track(work, "measuring", console=console):
        check(length, DTYPES[name])
        rows.append({"length": length, "dtype": name, **measure(length, DTYPES[name], options.repeats)})
    result = {
        "machine": {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "system": platform.platform()},
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "shape": {"pattern": repr(PATTERN), "B": 1, "Hq": HQ, "Hkv": HKV, "D": D, "causal": True},
        "units": "seconds: median, fastest, slowest; memory: bytes that the process grew by at its peak",
        "rows": rows,
        "memory": [] if options.skip_memory else [memory_of(length) for length in MEMORY_LENGTHS],
    }
    Console().print(table(result))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_name(options.out.name + ".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, options.out)
    console.print(f"written to {options.out}")
    return 0


def check(length: int, dtype: torch.dtype) -> None:
    """Raise an AssertionError unless output and gradients are right, short and (sampled rows) at the full length."""
    judge_attention(dict(zip("qkv", _inputs(2048, dtype), strict=True)), PATTERN, implementation="cpu")
    q, k, v = _inputs(length, dtype)
    out = attention(q, k, v, PATTERN)
    for t in range(0, length, length // 16):
        seen = {"q": q[:, t : t + 1], "k": k[:, : t + 1], "v": v[:, : t + 1]}
        expected = attention(
            **{name: x.double() for name, x in seen.items()}, pattern=PATTERN, implementation="reference"
        )
        plain = attention(**seen, pattern=PATTERN, implementation="reference")
        error, allowed = ((x.double() - expected).abs().max().item() for x in (out[:, t : t + 1], plain))
        assert error <= 2 * allowed + 1e-6, f"row {t} of {length} in {dtype}: error {error}, allowed 2 x {allowed}"


def measure(length: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Seconds of both, in turn, and what the ratio is of the ideal one."""
    q, k, v = (tensor.requires_grad_() for tensor in _inputs(length, dtype))
    weight = torch.randn_like(q)

    def sparse() -> Tensor:
        return attention(q, k, v, PATTERN)

    def dense() -> Tensor:
        heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)

    ideal = Full().pairs(length) / PATTERN.pairs(length)
    result: dict[str, Any] = {"ideal_ratio": ideal}
    for step, run in (("forward", _forward), ("forward_backward", _backward(weight))):
        times: dict[str, list[float]] = {"sparse-attn": [], "SDPA": []}
        for _ in range(repeats):
            for name, function in (("sparse-attn", sparse), ("SDPA", dense)):
                start = time.perf_counter()
                run(function)
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratio = medians["SDPA"] / medians["sparse-attn"]
        result[step] = {name: [medians[name], min(values), max(values)] for name, values in times.items()}
        result[step] |= {"ratio": ratio, "of_ideal": ratio / ideal}
    return result


def _forward(function: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        function()


def _backward(weight: Tensor) -> Callable[[Callable[[], Tensor]], None]:
    def run(function: Callable[[], Tensor]) -> None:
        out = function()
        out.backward(weight if out.shape == weight.shape else weight.transpose(1, 2))

    return run


def memory_of(length: int) -> dict[str, float]:
    """Growth of a fresh process, and its time, over forward and backward at one length."""
    command = [sys.executable, __file__, "--memory-of", str(length)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _report_memory(length: int) -> int:
    attention(*_inputs(256, torch.float32), PATTERN)  # loads what is loaded once
    q, k, v = (tensor.requires_grad_() for tensor in _inputs(length, torch.float32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    attention(q, k, v, PATTERN).sum().backward()
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"length": length, "bytes": grown, "seconds": seconds}))
    return 0


def table(result: dict[str, Any]) -> Table:
    shape = result["shape"]
    shown = Table(title=f"{shape['pattern']}, Hq {HQ}, Hkv {HKV}, D {D}, {result['machine']['threads']} threads")
    for heading in ("tokens", "dtype", "pass", "sparse-attn s", "SDPA s", "ratio", "ideal", "of ideal"):
        shown.add_column(heading, justify="right")
    for row in result["rows"]:
        for step in ("forward", "forward_backward"):
            times = row[step]
            shown.add_row(
                f"{row['length']:,}", row["dtype"], step.replace("_", " + "),
                f"{times['sparse-attn'][0]:.2f}", f"{times['SDPA'][0]:.2f}", f"{times['ratio']:.2f}",
                f"{row['ideal_ratio']:.2f}", f"{times['of_ideal']:.2f}",
            )  # fmt: skip
    for row in result["memory"]:
        shown.caption = (
            shown.caption or ""
        ) + f"{row['length']:,} tokens: +{row['bytes'] / 2**20:.0f} MiB, {row['seconds']:.1f} s. "
    return shown


def _inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(1, length, heads, D).to(dtype) for heads in (HQ, HKV, HKV)]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096, 8192, 16384])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-memory", action="store_true", help="leave out the growth of memory and time")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu" / "attention.json")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
