"""Attention to blocks that the content chooses, on a GPU, against dense attention: checked first, then timed.

    python benchmarks/selected_attention.py [--lengths 65536 131072] [--rows 64 1] [--out FILE]

The pattern is window(512) | topblocks(32, block=64, rows=R), causal, bf16, 32 query heads, 8 KV heads, head dim 128. The time
includes the choice of blocks, as `attention` makes it; "parts" takes it apart. Output and gradients are compared with masked
attention in float32 on a short sequence, and sampled rows of the output at the full length. Milliseconds: median, 20th and
80th percentile. Dense attention is PyTorch's flash kernel, in the same process; its backward pass is timed up to 64K.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench

from sparse_attn import parse
from sparse_attn.kernels.attention import fused_attention
from sparse_attn.kernels.selected import fused_selected_attention, fused_union_attention
from sparse_attn.ops import select_blocks
from sparse_attn.ops.select_blocks import choose_blocks

HQ, HKV, D, WINDOW, BLOCK, K = 32, 8, 128, 512, 64, 32
SCALE = D**-0.5
QUANTILES = [0.5, 0.2, 0.8]
attend_dense: Callable[..., Tensor] = torch.nn.functional.scaled_dot_product_attention


def pattern_text(rows: int) -> str:
    return f"window({WINDOW}) | topblocks({K}, block={BLOCK}, rows={rows})"


def inputs_of(n: int, heads: tuple[int, int] = (HQ, HKV)) -> list[Tensor]:
    sizes = (heads[0], heads[1], heads[1])
    return [torch.randn(1, n, count, D, device="cuda", dtype=torch.bfloat16).requires_grad_() for count in sizes]


def kept(selected: Tensor, n: int, rows: int, queries: Tensor) -> Tensor:
    """``[H, queries, n]``: the keys in the window or in a chosen block."""
    own = selected[0, queries // rows].transpose(0, 1)
    blocks = torch.zeros(*own.shape[:2], n // BLOCK + 2, dtype=torch.bool, device="cuda")
    blocks.scatter_(2, torch.where(own < 0, n // BLOCK + 1, own).long(), True)
    j = torch.arange(n, device="cuda")
    chosen = blocks[..., :-1].repeat_interleave(BLOCK, 2)[..., :n]
    behind = queries[:, None] - j[None, :]
    return (behind >= 0) & (chosen | (behind < WINDOW))


def check(rows: int, n: int = 3000) -> dict[str, float]:
    """Relative errors (Frobenius norm) of output and gradients against masked attention in float32."""
    leaves = inputs_of(n, (8, 2))
    selected = select_blocks(leaves[0], leaves[1], parse(pattern_text(rows)))
    out, _ = fused_union_attention(*leaves, selected, pattern_text(rows), causal=True, scale=SCALE)
    mask = kept(selected, n, rows, torch.arange(n, device="cuda")).repeat_interleave(4, 0)
    wide = [x.detach().float().requires_grad_() for x in leaves]
    expected = attend_dense(*(x.transpose(1, 2) for x in wide), attn_mask=mask, enable_gqa=True).transpose(1, 2)
    weight = torch.randn_like(expected)
    out.backward(weight.bfloat16())
    expected.backward(weight)
    errors = {"out": error(out, expected)}
    errors |= {f"d{name}": error(a.grad, b.grad) for name, a, b in zip("qkv", leaves, wide, strict=True)}
    assert max(errors.values()) < 0.01, errors
    return errors


def check_rows(rows: int, n: int) -> float:
    """Relative error of sampled rows at the full length."""
    q, k, v = (x.detach() for x in inputs_of(n))
    selected = select_blocks(q, k, parse(pattern_text(rows)))
    out, _ = fused_union_attention(q, k, v, selected, pattern_text(rows), causal=True, scale=SCALE)
    sample = torch.linspace(0, n - 1, 32, device="cuda").long()
    mask = kept(selected, n, rows, sample).repeat_interleave(HQ // HKV, 0)
    expected = attend_dense(
        q[:, sample].float().transpose(1, 2), k.float().transpose(1, 2), v.float().transpose(1, 2), attn_mask=mask,
        enable_gqa=True,
    )  # fmt: skip
    found = error(out[:, sample], expected.transpose(1, 2))
    assert found < 0.01, found
    return found


def error(got: Tensor | None, expected: Tensor | None) -> float:
    assert got is not None
    assert expected is not None
    found = ((got.float() - expected.float()).norm() / expected.float().norm()).item()
    return math.inf if math.isnan(found) else found


def measure(rows: int, n: int) -> dict[str, Any]:
    """Milliseconds of the whole call, of its backward pass, and of the parts of the call."""
    text, pattern = pattern_text(rows), parse(pattern_text(rows))
    q, k, v = inputs_of(n)

    def select() -> Tensor:
        with torch.no_grad():
            return choose_blocks(q, k, [pattern], causal=True)  # as `attention` does, which asks for no order

    def attend(selected: Tensor) -> Tensor:
        return fused_union_attention(q, k, v, selected, text, causal=True, scale=SCALE)[0]

    selected = select()
    with torch.no_grad():
        whole = time(lambda: attend(select()))
        parts = {
            "select": time(select),
            "window": time(lambda: fused_attention(q, k, v, f"window({WINDOW})", causal=True, scale=SCALE)),
            "chosen": time(lambda: fused_selected_attention(q, k, v, selected, text, causal=True, scale=SCALE)),
        }
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = attend(selected)
    forward_memory = torch.cuda.max_memory_allocated() - before
    weight = torch.randn_like(out)
    backward = time(lambda: torch.autograd.grad(out, (q, k, v), weight, retain_graph=True))
    memory = {"forward": forward_memory, "backward": torch.cuda.max_memory_allocated() - before}
    return {"forward": whole, "backward": backward, "parts": parts, "peak_bytes_beside_inputs": memory}


def measure_dense(n: int) -> dict[str, Any]:
    q, k, v = (x.detach().transpose(1, 2).contiguous().requires_grad_() for x in inputs_of(n))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with torch.no_grad():
            found = {"forward": time(lambda: attend_dense(q, k, v, is_causal=True, enable_gqa=True))}
        if n <= 65536:
            out = attend_dense(q, k, v, is_causal=True, enable_gqa=True)
            weight = torch.randn_like(out)
            found["backward"] = time(lambda: torch.autograd.grad(out, (q, k, v), weight, retain_graph=True))
    return found


def time(run: Callable[[], Any]) -> list[float]:
    return do_bench(run, warmup=50, rep=400, quantiles=QUANTILES)  # type: ignore[no-any-return]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[65536, 131072])
    parser.add_argument("--rows", nargs="+", type=int, default=[64, 1])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(), "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "units": "milliseconds: median, 20th and 80th percentile", "Hq": HQ, "Hkv": HKV, "D": D, "dtype": "bfloat16",
        "rows": [],
    }  # fmt: skip
    checked = {rows: check(rows) for rows in options.rows}
    for n in options.lengths:
        dense = measure_dense(n)
        for rows in options.rows:
            sampled = check_rows(rows, n)
            own = measure(rows, n)
            faster = {step: dense[step][0] / own[step][0] for step in dense}
            row = {"pattern": pattern_text(rows), "T": n, "error": checked[rows] | {"sampled_rows": sampled}}
            results["rows"].append(row | {"times": own, "dense": dense, "times faster": faster})
            shown = ", ".join(f"{step} {own[step][0]:.2f} ms, {ratio:.2f} x dense" for step, ratio in faster.items())
            print(f"{n} {pattern_text(rows)}: {shown}; {own}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
