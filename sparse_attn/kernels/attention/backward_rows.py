"""First kernel of the backward pass: two numbers for each query row that the others read.

    delta = sum_d(dout * out) - dlse;   lse2 = log2(e) * LSE

They are stored head by head, ``[B, Hq, T]``, so that a tile of rows reads them as one run. Behind the last row, up to a
multiple of 16, stand rows of weight 0 (lse2 infinite): a tile reads several numbers at once without asking for each.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import head_pointer
from .launch import lengths_of
from .repeated_launch import Launch, Launches, alike, strides
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
    given = (out, d_out, lse, d_lse)
    aligned = tuple([x is None or x.data_ptr() % 16 == 0 for x in given])
    launch = _LAUNCHES.kept((backward_rows_kernel, aligned, alike(*given)), lambda: _launch(*given))
    launch(out=out, d_out=d_out, lse=lse, d_lse=d_lse, delta=delta, lse2=lse2)
    return delta, lse2


_LAUNCHES = Launches()


def _launch(out: Tensor, d_out: Tensor, lse: Tensor, d_lse: Tensor | None) -> Launch:
    batch, n_queries, n_heads, head_dim = out.shape
    fixed: dict[str, Any] = {
        **strides("ob ot oh", out), **strides("db dt dh", d_out), **strides("lb lt lh", d_lse), **strides("sb st sh", lse),
        "stride_row": -(-n_queries // 16) * 16, "n_queries": n_queries, "n_heads": n_heads,
        "HAS_D_LSE": d_lse is not None, "D": head_dim, "BLOCK_D": padded_head_dim(head_dim), "ROWS_A_PROGRAM": _ROWS,
    }  # fmt: skip
    return Launch(backward_rows_kernel, (-(-n_queries // _ROWS) * n_heads * batch,), fixed)
