"""First kernel of the backward pass: two numbers for each query row that the others read.

    delta = sum_d(dout * out) - dlse;   lse2 = log2(e) * LSE

They are stored head by head, ``[B, Hq, T]``, so that a tile of rows reads them as one run. Behind the last row, up to a
multiple of 16, stand rows of weight 0 (lse2 infinite): a tile reads several numbers at once without asking for each.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import head_pointer
from .launch import lengths_of
from .launching import Launch
from .tiles import padded_head_dim

_ROWS = 64


@triton.jit(do_not_specialize=lengths_of("backward_rows"))
def backward_rows_kernel(
    out, d_out, lse, d_lse, delta, lse2,
    stride_ob, stride_ot, stride_oh, stride_db, stride_dt, stride_dh, stride_lb, stride_lt, stride_lh,
    stride_sb, stride_st, stride_sh, stride_row,
    n_queries, n_heads,
    HAS_D_LSE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS_A_PROGRAM: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    blocks = (n_queries + ROWS_A_PROGRAM - 1) // ROWS_A_PROGRAM
    head = program % n_heads
    batch = program // n_heads // blocks
    rows = program // n_heads % blocks * ROWS_A_PROGRAM + tl.arange(0, ROWS_A_PROGRAM)
    d = tl.arange(0, BLOCK_D)
    inside = rows < n_queries
    padded = rows < stride_row
    seen = inside[:, None] & (d < D)[None, :]
    wide = rows.to(tl.int64)
    out_at = head_pointer(out, batch, head, stride_ob, stride_oh, False) + (wide * stride_ot)[:, None] + d[None, :]
    d_out_at = head_pointer(d_out, batch, head, stride_db, stride_dh, False) + (wide * stride_dt)[:, None] + d[None, :]
    product = tl.load(out_at, mask=seen, other=0.0).to(tl.float32) * tl.load(d_out_at, mask=seen, other=0.0).to(
        tl.float32
    )
    result = tl.sum(product, 1)
    if HAS_D_LSE:
        d_lse_at = head_pointer(d_lse, batch, head, stride_lb, stride_lh, False) + wide * stride_lt
        result -= tl.load(d_lse_at, mask=inside, other=0.0)
    at = (batch.to(tl.int64) * n_heads + head) * stride_row + rows
    tl.store(delta + at, tl.where(inside, result, 0.0), mask=padded)
    lse_at = head_pointer(lse, batch, head, stride_sb, stride_sh, False) + wide * stride_st
    natural = tl.load(lse_at, mask=inside, other=float("inf"))
    tl.store(lse2 + at, natural * 1.4426950408889634, mask=padded)


def backward_rows(out: Tensor, d_out: Tensor, lse: Tensor, d_lse: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """delta and lse2 in float32, ``[B, Hq, T]``, T rounded up to a multiple of 16."""
    batch, n_queries, n_heads, _ = out.shape
    delta = torch.empty((batch, n_heads, -(-n_queries // 16) * 16), dtype=torch.float32, device=out.device)
    lse2 = torch.empty_like(delta)
    given = {"out": out, "d_out": d_out, "lse": lse} | ({} if d_lse is None else {"d_lse": d_lse})
    aligned = tuple([tensor.data_ptr() % 16 == 0 for tensor in given.values()])
    launch = _launch(backward_rows_kernel, out.device, aligned, delta.stride(1), out.shape, out.dtype,
                     *[tensor.stride() for tensor in given.values()])  # fmt: skip
    launch(**given, delta=delta, lse2=lse2)
    return delta, lse2


@lru_cache(maxsize=256)
def _launch(
    kernel: Any, _device: torch.device, _aligned: tuple[bool, ...], stride_row: int, shape: torch.Size, _dtype: torch.dtype,
    by_out: tuple[int, ...], by_d_out: tuple[int, ...], by_lse: tuple[int, ...], by_d_lse: tuple[int, ...] | None = None,
) -> Launch:  # fmt: skip
    batch, n_queries, n_heads, head_dim = shape
    fixed: dict[str, Any] = {
        **_strides("ob ot oh", by_out), **_strides("db dt dh", by_d_out), **_strides("sb st sh", by_lse),
        **_strides("lb lt lh", by_d_lse or (0, 0, 0)), "stride_row": stride_row, "n_queries": n_queries, "n_heads": n_heads,
        "HAS_D_LSE": by_d_lse is not None, "D": head_dim, "BLOCK_D": padded_head_dim(head_dim), "ROWS_A_PROGRAM": _ROWS,
    }  # fmt: skip
    if by_d_lse is None:
        fixed["d_lse"] = None
    return Launch(kernel, (-(-n_queries // _ROWS) * n_heads * batch,), fixed, {})


def _strides(names: str, strides: tuple[int, ...]) -> dict[str, int]:
    return dict(zip([f"stride_{name}" for name in names.split()], strides[:3], strict=True))
