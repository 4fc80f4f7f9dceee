"""Attention on a GPU: ours against PyTorch's dense and compiled sparse attention, checked first, in one process.

    python benchmarks/gpu_attention.py [--out benchmarks/results] [--quick]

For each shape the answer comes first: output and gradients on a shorter sequence against masked attention in float32,
and sampled rows of the output at the shape itself. Then forward and backward passes are timed: medians, with the 20th and
80th percentiles, of `triton.testing.do_bench`. TFLOP/s count kept pairs only: 4 * Hq * D * pairs forward, 2.5 times that
backward. Writes OUT/<gpu>/attention.json.
"""

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench

from sparse_attn import Pattern, attention, parse

CHECKED_LENGTH = 3000
SAMPLED_ROWS = 32


@dataclass(frozen=True)
class Shape:
    """One line of the table, and which peers run beside it."""

    pattern: str
    T: int
    Hq: int
    Hkv: int
    D: int
    causal: bool = True
    flex: bool = False
    dense: bool = True
    flex_backward: bool = True

    @property
    def pairs(self) -> int:
        return parse(self.pattern).pairs(self.T, causal=self.causal)


K = 1024
SHAPES = [
    *(Shape("window(2048)", n * K, 32, 8, 128, flex=n >= 32) for n in (4, 32, 128)),
    Shape("window(2048) | sinks(4)", 32 * K, 32, 8, 128, dense=False),
    *(Shape("window(2048)", n * K, 32, 32, 64, causal=False, flex=n == 32) for n in (4, 8, 16, 32)),
    *(Shape("window(1024)", n * K, 8, 2, 128, dense=False) for n in (128, 1024)),
    *(Shape("window(1024) | sinks(4) | strided(1024)", n * K, 8, 2, 128, dense=False, flex=True, flex_backward=n < 1024)
      for n in (128, 1024)),
    Shape("full()", 32 * K, 32, 8, 128),
]  # fmt: skip


def main() -> int:
    options = _options()
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES[:2] if options.quick else SHAPES:
        checked = check(shape)
        row = asdict(shape) | {"pairs": shape.pairs, "error": checked, "times": measure(shape)}
        rows.append(row)
        print(_line(row), flush=True)
        _write(options.out, rows)
    return 0


def check(shape: Shape) -> dict[str, float]:
    """Relative errors (Frobenius norm) of output and gradients, short, and of sampled rows at the full length.

    Raises:
        AssertionError: an error above 1%, twice what bfloat16 itself costs here and more.
    """
    pattern = parse(shape.pattern)
    inputs = _inputs(shape, min(shape.T, CHECKED_LENGTH))
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    out = attention(*inputs, pattern, causal=shape.causal)
    mask = torch.from_numpy(pattern.mask(out.shape[1], causal=shape.causal)).to(out.device)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in wide), attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    weight = torch.randn_like(expected)
    out.backward(weight.bfloat16())
    expected.backward(weight)
    errors = {"out": _error(out, expected)}
    for name, got, leaf in zip("qkv", inputs, wide, strict=True):
        errors[f"d{name}"] = _error(got.grad, leaf.grad)
    errors["sampled_rows"] = _sampled_error(shape, pattern)
    assert max(errors.values()) < 0.01, f"{shape}: {errors}"
    return errors


def _sampled_error(shape: Shape, pattern: Pattern) -> float:
    q, k, v = (tensor.detach() for tensor in _inputs(shape, shape.T))
    out = attention(q, k, v, pattern, causal=shape.causal)
    chosen = np.unique(np.linspace(0, shape.T - 1, SAMPLED_ROWS).astype(np.int64))
    j = np.arange(shape.T)[None, :]
    keep = np.zeros((len(chosen), shape.T), dtype=bool)
    for term in pattern.terms:
        keep |= term.keeps(chosen[:, None], j, shape.T, shape.causal)
    if shape.causal:
        keep &= j <= chosen[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[:, chosen].float().transpose(1, 2),
        k.float().transpose(1, 2),
        v.float().transpose(1, 2),
        attn_mask=torch.from_numpy(keep).to(q.device),
        enable_gqa=True,
    )
    return _error(out[:, chosen], expected.transpose(1, 2))


def measure(shape: Shape) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by implementation and pass: median, 20th and 80th percentile."""
    pattern = parse(shape.pattern)
    q, k, v = _inputs(shape, shape.T)
    times = {"sparse-attn": _time(lambda: attention(q, k, v, pattern, causal=shape.causal), (q, k, v), True)}
    flipped = [tensor.detach().transpose(1, 2).contiguous().requires_grad_() for tensor in (q, k, v)]
    if shape.dense:
        for name, backend in (("SDPA flash", SDPBackend.FLASH_ATTENTION), ("SDPA cuDNN", SDPBackend.CUDNN_ATTENTION)):
            with sdpa_kernel(backend):
                times[name] = _time(
                    lambda: torch.nn.functional.scaled_dot_product_attention(
                        *flipped, is_causal=shape.causal, enable_gqa=True
                    ),
                    flipped,
                    shape.T <= 32 * K,
                )
    if shape.flex:
        times["FlexAttention"] = _time(_flex(shape, flipped), flipped, shape.flex_backward)
    return times


def _flex(shape: Shape, inputs: list[Tensor]) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    scattered = "strided" in shape.pattern
    width = 1024 if scattered else 2048

    def kept(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        near = (i - j < width) if shape.causal else ((i - j < width) & (j - i < width))
        if scattered:
            near = near | (j < 4) | (j % 1024 == 0)
        return near & (j <= i) if shape.causal else near

    mask = create_block_mask(kept, None, None, shape.T, shape.T, device="cuda", _compile=True)
    compiled = torch.compile(flex_attention)
    return lambda: compiled(*inputs, block_mask=mask, enable_gqa=True)


def _time(run: Callable[[], Tensor], inputs: Any, backward: bool) -> dict[str, list[float]]:
    quantiles = [0.5, 0.2, 0.8]
    with torch.no_grad():
        times = {"forward": do_bench(run, warmup=25, rep=150, quantiles=quantiles)}
    if backward:
        out = run()
        weight = torch.randn_like(out)
        times["backward"] = do_bench(
            lambda: torch.autograd.grad(out, inputs, weight, retain_graph=True),
            warmup=25, rep=150, quantiles=quantiles,
        )  # fmt: skip
    return times


def _inputs(shape: Shape, n: int) -> list[Tensor]:
    heads = (shape.Hq, shape.Hkv, shape.Hkv)
    return [torch.randn(1, n, h, shape.D, device="cuda", dtype=torch.bfloat16).requires_grad_() for h in heads]


def _error(got: Tensor | None, expected: Tensor | None) -> float:
    assert got is not None
    assert expected is not None
    error = ((got.float() - expected.float()).norm() / expected.float().norm()).item()
    return math.inf if math.isnan(error) else error


def _line(row: dict[str, Any]) -> str:
    flops = 4 * row["Hq"] * row["D"] * row["pairs"]
    parts = []
    for name, times in row["times"].items():
        shown = [f"{name}"]
        for step, factor in (("forward", 1.0), ("backward", 2.5)):
            if step in times:
                median = times[step][0]
                rate = f" ({factor * flops / median / 1e9:.0f} TFLOP/s)" if name == "sparse-attn" else ""
                shown.append(f"{step} {median:.3f} ms{rate}")
        parts.append(" ".join(shown))
    form = "causal" if row["causal"] else "bidirectional"
    return f"{row['pattern']} {form} T={row['T']} Hq={row['Hq']} Hkv={row['Hkv']} D={row['D']}: " + "; ".join(parts)


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    name = torch.cuda.get_device_name()
    folder = out / ("h100" if "H100" in name else name.lower().replace(" ", "-"))
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "gpu": name,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "units": "milliseconds: median, 20th and 80th percentile",
        "rows": rows,
    }
    partial = folder / "attention.json.partial"
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, folder / "attention.json")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="the first two shapes only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
