"""One call for a profiler to look at, and what it said of each kernel: how busy the tensor cores were, what warps waited for.

    ncu --profile-from-start off --clock-control none --set full -k regex:'kernel$' -o call \\
        python benchmarks/profiled_call.py [--pattern "window(2048)"] [--length 32768] [--head-dims 64 128]
    ncu --import call.ncu-rep --page raw --csv >call.csv
    python benchmarks/profiled_call.py --read call.csv --out benchmarks/results/h100/profile.json  # the same options

The call, forward and backward, has been made before, so that nothing is compiled under the profiler. Head dim 64 is bidirectional
with 32 KV heads, others causal with 8, as in the benchmark. A kernel runs some 40 times, with empty caches.
"""

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

import torch

from sparse_attn import attention, parse

# Shares are of the peak; "busy" of the cycles in which a multiprocessor was at work, others of all.
KEPT = {
    "milliseconds": "gpu__time_duration.sum",
    "clock, GHz": "sm__cycles_elapsed.avg.per_second",
    "tensor cores busy, %": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "schedulers issue, %": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "powers and conversions (XU), %": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
    "shared memory, %": "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum.pct_of_peak_sustained_elapsed",
    "second-level cache, %": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "registers a thread": "launch__registers_per_thread",
    "shared memory of a program, KB": "launch__shared_mem_per_block",
    "threads of a program": "launch__block_size",
}
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", default="window(2048)")
    parser.add_argument("--length", type=int, default=32768)
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--read", type=Path, help="the profiler's table, of a run with the same options")
    parser.add_argument(
        "--measured", default="", help="on what GPU, when, of which commit, to be put beside what was read"
    )
    parser.add_argument("--out", type=Path, default=Path("profile.json"), help="where to put what was read")
    options = parser.parse_args()
    if options.read is None:
        for head_dim in options.head_dims:
            call(options.pattern, options.length, head_dim)
        return
    about = {"measured": options.measured, "pattern": options.pattern, "T": options.length}
    kernels = list(read(options.read.read_text(), options.head_dims))
    options.out.write_text(json.dumps(about | {"kernels": kernels}, indent=1) + "\n")
    for kernel in kernels:
        stalls = sorted(kernel["warps' time, %"].items(), key=lambda stall: -stall[1])
        print(f"D {kernel['D']} {kernel['kernel']}: " + ", ".join(f"{name} {kernel[name]}" for name in KEPT))
        print("    " + ", ".join(f"{name} {share}" for name, share in stalls[:6]))


def call(pattern: str, length: int, head_dim: int) -> None:
    """Forward and backward, twice; the profiler sees the second time."""
    kv_heads = 32 if head_dim == 64 else 8
    leaves: Any = {
        name: torch.randn(1, length, n, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for name, n in {"q": 32, "k": kv_heads, "v": kv_heads}.items()
    }
    d_out = torch.randn_like(leaves["q"])
    for watched in (False, True):
        for leaf in leaves.values():
            leaf.grad = None
        torch.cuda.synchronize()
        if watched:
            torch.cuda.cudart().cudaProfilerStart()
        attention(**leaves, pattern=parse(pattern), causal=head_dim != 64).backward(d_out)
        torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


def read(table: str, head_dims: list[int]) -> list[dict[str, Any]]:
    """A row for each kernel but PyTorch's own: one head dim's follow another's, and each begin with the forward kernel.

    "warps' time" tells what an average warp did: "selected" is issuing, the rest are ncu's names for what it waited for.
    """
    names, units, *lines = csv.reader(table.splitlines())
    rows = [dict(zip(names, values, strict=True)) for values in lines]
    rows = [row for row in rows if row["Kernel Name"].isidentifier()]
    calls = sum(row["Kernel Name"] == "forward_kernel" for row in rows)
    if calls != len(head_dims):
        raise SystemExit(f"profiled_call: the table holds {calls} calls, for {len(head_dims)} head dims")
    if rows[0]["Kernel Name"] != "forward_kernel":
        raise SystemExit(f"profiled_call: the table begins with {rows[0]['Kernel Name']}, not with a forward kernel")
    found: list[dict[str, Any]] = []
    nth = -1
    for row in rows:
        nth += row["Kernel Name"] == "forward_kernel"
        stalls = {match[1]: number(row[name]) for name in names if (match := STALL.fullmatch(name))}
        whole = sum(stalls.values())
        shares = {name: round(100 * value / whole, 1) for name, value in stalls.items() if value > 0.01 * whole}
        kept = {what: round(number(row[name]), 3) for what, name in KEPT.items()}
        found.append({"D": head_dims[nth], "kernel": row["Kernel Name"]} | kept | {"warps' time, %": shares})
    for what, unit in {
        "milliseconds": "ms",
        "clock, GHz": "Ghz",
        "shared memory of a program, KB": "Kbyte/block",
    }.items():
        if (given := units[names.index(KEPT[what])]) != unit:
            raise SystemExit(f"profiled_call: {KEPT[what]} is in {given}, not {unit}")
    return found


def number(text: str) -> float:
    return float(text.replace(",", ""))


if __name__ == "__main__":
    main()
