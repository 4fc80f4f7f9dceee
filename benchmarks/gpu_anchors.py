"""What learned anchors cost on a GPU, all parts counted: pooling, scan and attention, checked first, in one process.

    PYTHONPATH=. python benchmarks/gpu_anchors.py --out benchmarks/results/h100/anchors.json

Three rows of each length: the window alone, the window with 64 extra keys that are given, and the window with anchors made
of the same keys, by means or by learned pooling. Bf16, batch 1, Hq 32, Hkv 8, D 128. Medians of `triton.testing.do_bench` with
the 20th and 80th percentile; "step" is forward and backward pass together, as a training step has them.
"""

import argparse
import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.testing import do_bench

from sparse_attn import Anchors, Window, attention
from sparse_attn.ops import AnchorWeights, read_anchors

HQ, HKV, D, R, BLOCK = 32, 8, 128, 64, 128
WINDOW, K = 2048, 1024
CHECKED_LENGTH = 3000


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
        for name, run, leaves in variants(length):
            times = {"forward": _forward(run), "step": _step(run, leaves)}
            rows.append({"T": length, "name": name, "times": times})
            first = next(row for row in rows if row["T"] == length)
            extra = {part: times[part][0] / first["times"][part][0] - 1 for part in times}
            print(
                f"{length} {name}: "
                + "; ".join(f"{part} {times[part][0]:.3f} ms ({extra[part]:+.1%})" for part in times)
            )
    result = {
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "shape": {"Hq": HQ, "Hkv": HKV, "D": D, "window": WINDOW, "r": R, "block": BLOCK, "dtype": "bfloat16"},
        "units": "milliseconds: median, 20th and 80th percentile; step: forward and backward pass",
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
    assert errors.pop("dlogit") < 0.04
    assert max(errors.values()) < 0.01, errors
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


def _forward(run: Callable[[], Any]) -> list[float]:
    with torch.no_grad():
        return list(do_bench(run, warmup=25, rep=150, quantiles=[0.5, 0.2, 0.8]))


def _step(run: Callable[[], Any], leaves: list[Any]) -> list[float]:
    draw = torch.randn_like(run())
    return list(
        do_bench(lambda: torch.autograd.grad(run(), leaves, draw), warmup=50, rep=300, quantiles=[0.5, 0.2, 0.8])
    )


def _error(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected.float()).norm() / expected.float().norm()).item()


if __name__ == "__main__":
    main()
