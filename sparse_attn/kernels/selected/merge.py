"""Kernel that takes two results over disjoint keys together, in one reading of both: as `ops.merge`, without gradients.

lse = log(exp(lse_a) + exp(lse_b));  out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.tiles import padded_head_dim


@triton.jit(do_not_specialize=["n_rows"])
def merge_kernel(
    out_a, lse_a, out_b, lse_b, out, lse, n_rows, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    inside = rows < n_rows
    at = (rows.to(tl.int64) * D)[:, None] + d[None, :]
    there = inside[:, None] & (d < D)[None, :]
    a = tl.load(lse_a + rows, mask=inside, other=float("-inf"))
    b = tl.load(lse_b + rows, mask=inside, other=float("-inf"))
    top = tl.maximum(a, b)
    top = tl.where(top == float("-inf"), 0.0, top)
    weight_a, weight_b = tl.exp(a - top), tl.exp(b - top)
    total = weight_a + weight_b
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    part_a = tl.load(out_a + at, mask=there, other=0.0).to(tl.float32)
    part_b = tl.load(out_b + at, mask=there, other=0.0).to(tl.float32)
    result = part_a * (weight_a * share)[:, None] + part_b * (weight_b * share)[:, None]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=there)
    tl.store(lse + rows, top + tl.log(total), mask=inside)


def merge_two(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Out and LSE over the keys of both; all contiguous, ``[B, T, Hq, D]`` and ``[B, T, Hq]``."""
    out, lse = torch.empty_like(out_a), torch.empty_like(lse_a)
    block_d = padded_head_dim(out.shape[-1])
    rows = max(1, 8192 // block_d)
    if out.numel():
        merge_kernel[(triton.cdiv(lse.numel(), rows),)](
            out_a, lse_a, out_b, lse_b, out, lse, lse.numel(), D=out.shape[-1], BLOCK_D=block_d, BLOCK_R=rows
        )
    return out, lse
