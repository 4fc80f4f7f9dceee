"""Second kernel of anchors: a running softmax along the blocks, a row of summaries written before each.

    row n = sums / total;   top' = max(top, l_n);   x' = exp(top - top') x + exp(l_n - top') u_n   for x = total and sums

A program keeps [BLOCK_R, BLOCK_D] sums of keys or of values of one head in registers and walks along all blocks of one
sequence, GROUP loads at a time. Every number goes through the same steps wherever a walk begins: whole sequences,
chunks and single blocks give the same bits. Memory bounds it, if enough programs walk side by side.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.tiles import padded_head_dim
from .spans import Spans

GROUP = 8  # blocks whose loads are under way at once


class State(NamedTuple):
    """Of each sequence: ``[sequences, R, Hkv]`` twice, and key and value sums ``[2, sequences, R, Hkv, D]``; float32."""

    top: Tensor
    total: Tensor
    sums: Tensor


@triton.jit
def walk(sequence, rows, n_rows, PACKED: tl.constexpr):
    """First row and end of a sequence, among the rows of all."""
    if PACKED:
        return tl.load(rows + sequence), tl.load(rows + sequence + 1)
    else:
        return sequence * n_rows, sequence * n_rows + n_rows


@triton.jit(do_not_specialize=["n_rows", "stride_pooled", "stride_side"])
def scan_kernel(
    pooled, logits, top_before, total_before, sums_before, summaries, log_totals, top_after, total_after, sums_after, rows,
    stride_pooled, stride_side, stride_state, n_rows, n_heads,
    R: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, PACKED: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_d: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    tiles_r: tl.constexpr = (R + BLOCK_R - 1) // BLOCK_R
    d = program % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    side = program // tiles_d % 2
    r = program // tiles_d // 2 % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    head = program // tiles_d // 2 // tiles_r % n_heads
    sequence = program // tiles_d // 2 // tiles_r // n_heads
    first, last = walk(sequence, rows, n_rows, PACKED)
    here = r < R
    inside = here[:, None] & (d < D)[None, :]
    wide_side = side.to(tl.int64)
    pooled += wide_side * stride_pooled
    summaries += wide_side * stride_side

    state = (sequence * R + r) * n_heads + head
    top = tl.load(top_before + state, mask=here, other=0.0)
    total = tl.load(total_before + state, mask=here, other=1.0)
    sums_at = wide_side * stride_state + state[:, None] * D + d[None, :]
    sums = tl.load(sums_before + sums_at, mask=inside, other=0.0)
    first_of_row = program % (2 * tiles_d) == 0
    writes_totals = here & first_of_row
    begin = first.to(tl.int64)
    for ahead in tl.range(0, last - first, GROUP):
        # All loads of a group of blocks first: a load takes as long as ten steps.
        found_logits = ()
        found_elements = ()
        for nth in tl.static_range(GROUP):
            block = (begin + ahead + nth) * n_heads + head
            there = begin + ahead + nth < last
            found_logits = found_logits + (tl.load(logits + block * R + r, mask=here & there, other=0.0),)  # type: ignore[assignment]  # noqa: RUF005
            found_elements = found_elements + (tl.load(pooled + block * D + d, mask=(d < D) & there, other=0.0),)  # type: ignore[assignment]  # noqa: RUF005
        for nth in tl.static_range(GROUP):
            n = begin + ahead + nth
            there = n < last
            at = ((n * R + r) * n_heads + head)[:, None] * D + d[None, :]
            share = 1.0 / total
            tl.store(summaries + at, (sums * share[:, None]).to(summaries.dtype.element_ty), mask=inside & there)
            if first_of_row:
                at_totals = log_totals + (n * n_heads + head) * R + r
                tl.store(at_totals, top + tl.log(total), mask=here & there)
            # Behind the last block the logit is -inf, and the state stays.
            logit = tl.where(there, found_logits[nth], float("-inf"))
            new_top = tl.maximum(top, logit)
            decay = tl.exp(top - new_top)
            weight = tl.exp(logit - new_top)
            total = total * decay + weight
            sums = sums * decay[:, None] + weight[:, None] * found_elements[nth].to(tl.float32)[None, :]
            top = new_top

    tl.store(top_after + state, top, mask=writes_totals)
    tl.store(total_after + state, total, mask=writes_totals)
    tl.store(sums_after + sums_at, sums, mask=inside)


def scan(pooled: Tensor, logits: Tensor, before: State, spans: Spans) -> tuple[Tensor, Tensor, State]:
    """Summaries ``[2, B, N, R, Hkv, D]`` in the dtype of `pooled`, logs of their totals ``[B, N, Hkv, R]``, and the state
    after the last block."""
    _, batch, n_rows, heads, d = pooled.shape
    r = logits.shape[-1]
    summaries = torch.empty(2, batch, n_rows, r, heads, d, dtype=pooled.dtype, device=pooled.device)
    log_totals = torch.empty_like(logits)
    after = State(*(torch.empty_like(x) for x in before))
    block_r, block_d = scan_tile(r, d)
    tiles = -(-r // block_r) * -(-d // block_d)
    if spans.sequences:
        scan_kernel[(spans.sequences * heads * tiles * 2,)](
            pooled, logits, *before, summaries, log_totals, *after, spans.rows,
            pooled.stride(0), summaries.stride(0), before.sums.stride(0), n_rows, heads,
            R=r, D=d, BLOCK_R=block_r, BLOCK_D=block_d, PACKED=spans.packed, GROUP=GROUP, num_warps=1,
        )  # fmt: skip
    return summaries, log_totals, after


def scan_tile(r: int, head_dim: int) -> tuple[int, int]:
    """Rows and numbers of a program's tile: of 64 rows and head dim 128, 64 programs a head, half of them for values."""
    return min(4, triton.next_power_of_2(r)), min(64, padded_head_dim(head_dim))
