"""What learned anchors cost on a GPU, all parts counted: pooling, scan and attention, checked first, in one process.

    PYTHONPATH=. python benchmarks/gpu_anchors.py --out benchmarks/results/h100/anchors.json

Four rows of each length: the window alone, the window with 64 extra keys that are given, and the window with anchors made
of the same keys, by means or by learned pooling. Bf16, batch 1, Hq 32, Hkv 8, D 128. A card slows down by several percent as it
warms up: the four are measured in turn, many times over, and what anchors cost is the median of the rounds' ratios. "step" is
forward and backward pass together, as a training step has them.
"""

import argparse
import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
from torch import Tensor

from sparse_attn import Anchors, Window, attention
from sparse_attn.ops import AnchorWeights, read_anchors

HQ, HKV, D, R, BLOCK = 32, 8, 128, 64, 128
WINDOW, K = 2048, 1024
CHECKED_LENGTH = 3000
ROUNDS, CALLS, WARM_UP = 40, 5, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32 * K, 128 * K])
    options = parser.parse_args()
    torch.manual_seed(0)
    errors = {pooling: check(pooling) for pooling in ("mean", "learned")}
    print("relative errors", errors)
    rows = []
    for length in options.lengths:
        found = variants(length)
        with torch.no_grad():
            forward = measure([run for _, run, _ in found], ROUNDS)
        steps = measure([step_of(run, leaves) for _, run, leaves in found], ROUNDS // 2)
        for nth, (name, _, _) in enumerate(found):
            times = {"forward": summary(forward, nth), "step": summary(steps, nth)}
            rows.append({"T": length, "name": name, "times": times})
            print(f"{length} {name}: " + "; ".join(
                f"{part} {of['median']:.3f} ms ({of['above the window']:+.1%})" for part, of in times.items()
            ))  # fmt: skip
    result = {
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "shape": {"Hq": HQ, "Hkv": HKV, "D": D, "window": WINDOW, "r": R, "block": BLOCK, "dtype": "bfloat16"},
        "units": "milliseconds; above the window: median over rounds of the share of time on top; step: forward and backward",
        "errors": errors,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def check(pooling: str) -> dict[str, float]:
    """Relative errors (Frobenius norm) of output and gradients against float32 without kernels.

    Raises:
        AssertionError: an error above 1%; of the initial logit's gradient, a difference of two sums that nearly cancel, 4%.
    """
    leaves = inputs(CHECKED_LENGTH)
    learned = weights(pooling)
    out = anchored(leaves, learned, None)
    wide: list[Any] = [x.detach().float().requires_grad_() for x in (*leaves, *learned)]
    expected = anchored(wide[:3], wide[3:], "reference")
    draw = torch.randn_like(expected)
    got = torch.autograd.grad(out, [*leaves, *learned], draw.to(out.dtype))
    wanted = torch.autograd.grad(expected, wide, draw)
    names = ["q", "k", "v", "queries", "logit", "initial_k", "initial_v", "pooling"]
    errors = {"out": _error(out, expected)}
    errors |= {f"d{name}": _error(a, b) for name, a, b in zip(names, got, wanted, strict=False)}
    assert errors["dlogit"] < 0.04, errors
    assert max(error for name, error in errors.items() if name != "dlogit") < 0.01, errors
    return errors


def anchored(leaves: list[Any], learned: list[Any], implementation: str | None) -> Tensor:
    q, k, v = leaves
    read = read_anchors(
        k, v, AnchorWeights(*learned), BLOCK, implementation=None if implementation is None else "torch"
    )  # fmt: skip
    out = attention(
        q, read.k, read.v, Window(WINDOW) | Anchors(R, BLOCK),
        extra_k=read.extra_k, extra_v=read.extra_v, implementation=implementation,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


def variants(length: int) -> list[tuple[str, Callable[[], Any], list[Any]]]:
    q, k, v = leaves = inputs(length)
    pattern = Window(WINDOW)
    given: list[Any] = [
        torch.randn(1, -(-length // BLOCK), R, HKV, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2)
    ]
    found: list[tuple[str, Callable[[], Any], list[Any]]] = [
        ("window", lambda: attention(q, k, v, pattern), leaves),
        (
            "window, extra keys given",
            lambda: attention(q, k, v, pattern | Anchors(R, BLOCK), extra_k=given[0], extra_v=given[1]),
            [*leaves, *given],
        ),
    ]
    for pooling in ("mean", "learned"):
        learned = weights(pooling)
        found.append((f"window, anchors, {pooling} pooling", _run(leaves, learned), [*leaves, *learned]))
    return found


def _run(leaves: list[Any], learned: list[Any]) -> Callable[[], Any]:
    return lambda: anchored(leaves, learned, None)


def inputs(length: int) -> list[Any]:
    return [
        torch.randn(1, length, heads, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (HQ, HKV, HKV)
    ]


def weights(pooling: str) -> list[Any]:
    shapes = [(HKV, R, D), (HKV, R), (HKV, R, D), (HKV, R, D), *([(HKV, D)] if pooling == "learned" else [])]
    return [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]


def step_of(run: Callable[[], Any], leaves: list[Any]) -> Callable[[], Any]:
    draw = torch.randn_like(run())
    return lambda: torch.autograd.grad(run(), leaves, draw)


def measure(runs: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Milliseconds of each run in each round, the median of a few calls that find nothing of theirs in the cache.

    What fills the cache is read, not written: to write it back would cost whoever reads from memory first.
    """
    for run in runs:
        for _ in range(WARM_UP):
            run()
    other = torch.zeros(64 << 20, dtype=torch.int32, device="cuda")
    times: list[list[float]] = [[] for _ in runs]
    for nth in range(rounds):
        order = [(nth + at) % len(runs) for at in range(len(runs))]
        events = {at: [(_event(), _event()) for _ in range(CALLS)] for at in order}
        for at in order:
            for start, stop in events[at]:
                other.max()
                start.record()
                runs[at]()
                stop.record()
        torch.cuda.synchronize()
        for at in order:
            times[at].append(median(start.elapsed_time(stop) for start, stop in events[at]))
    return times


def summary(times: list[list[float]], nth: int) -> dict[str, float]:
    """A run's times, and what it costs above the first of the runs in the same rounds."""
    low, middle, high = (float(x) for x in torch.tensor(times[nth]).quantile(torch.tensor([0.2, 0.5, 0.8])))
    above = [one / window - 1 for one, window in zip(times[nth], times[0], strict=True)]
    return {"median": middle, "20th percentile": low, "80th percentile": high, "above the window": median(above)}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _error(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected.float()).norm() / expected.float().norm()).item()


if __name__ == "__main__":
    main()
