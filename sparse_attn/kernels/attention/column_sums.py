"""Adds up what programs found of the columns' gradients: the sums of one column's splits, in order, on top of dk or dv."""

import triton
import triton.language as tl
from torch import Tensor

from .launch import lengths_of
from .tiles import padded_head_dim


@triton.jit(do_not_specialize=lengths_of("column_sums"))
def column_sums_kernel(
    target, sums, places, tokens, first_column, n_columns, n_kv_heads, stride_tb, stride_tt, stride_th,
    stride_gs, stride_gb, stride_gt, stride_gh, D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0) % n_kv_heads
    column = first_column + tl.program_id(0) // n_kv_heads % n_columns
    batch = tl.program_id(0) // n_kv_heads // n_columns
    first, n_splits = tl.load(places + 3 * column), tl.load(places + 3 * column + 1)
    d = tl.arange(0, BLOCK_D)
    own = sums + batch.to(tl.int64) * stride_gb + tl.load(places + 3 * column + 2) * stride_gt + kv_head * stride_gh
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.range(0, n_splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        at = own + ((first + split).to(tl.int64) * stride_gs)[:, None] + d[None, :]
        total += tl.sum(tl.load(at, mask=(split < n_splits)[:, None] & (d < D)[None, :], other=0.0), axis=0)
    token = tl.load(tokens + column).to(tl.int64)
    to = target + batch.to(tl.int64) * stride_tb + token * stride_tt + kv_head * stride_th + d
    tl.store(to, tl.load(to, mask=d < D).to(tl.float32) + total, mask=d < D)


def add_column_sums(
    dk: Tensor, dv: Tensor, sums: Tensor, places: Tensor, tokens: Tensor, groups: tuple[slice, ...]
) -> None:
    """Add the sums ``[splits * 2, B, columns, Hkv, D]`` to dk and dv at the columns' tokens, always in one order.

    Args:
        places, groups: As `Geometry.column_blocks` gives them.
    """
    batch, _, n_kv_heads, head_dim = dk.shape
    by_sum, _, by_batch, by_column, by_head, _ = sums.stride()
    for nth, target in enumerate((dk, dv)):
        for group in groups:  # a token may be a column of several groups: one group after the other
            count = group.stop - group.start
            if count:
                column_sums_kernel[(count * n_kv_heads * batch,)](
                    target, sums[:, nth], places, tokens, group.start, count, n_kv_heads, *target.stride()[:3],
                    by_sum, by_batch, by_column, by_head,
                    D=head_dim, BLOCK_D=padded_head_dim(head_dim), SPLITS=16, num_warps=4,
                )  # fmt: skip
