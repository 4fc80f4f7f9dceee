"""Second kernel of anchors: a running softmax along the blocks, a row of summaries written before each.

    row n = sums / total;   top' = max(top, l_n);   x' = exp(top - top') x + exp(l_n - top') u_n   for x = total and sums

A program of one warp keeps one row's sums of keys, or of values, and walks along all blocks of one sequence. Tensors of
one axis alone, so that no number changes threads between a load and a store. Every number goes through the same steps
wherever a walk begins: whole sequences, chunks and single blocks give the same bits. What is written bounds it, if enough
programs walk side by side: of 64 rows and 8 heads, 1,024.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.tiles import LOG2_E, padded_head_dim
from .spans import Spans

GROUP = 16  # blocks whose loads are under way while as many before them are worked on
TO_BASE_2 = tl.constexpr(LOG2_E)


class State(NamedTuple):
    """Before or after a sequence's blocks, at whatever strides: ``[sequences, R, Hkv]`` twice, then ``[sequences, R, Hkv,
    D]`` twice. A total of None is 1: the state is one element, its logit `top`."""

    top: Tensor
    total: Tensor | None
    key_sums: Tensor
    value_sums: Tensor


@triton.jit
def walk(sequence, rows, n_rows, PACKED: tl.constexpr):
    """First row and end of a sequence, among the rows of all."""
    if PACKED:
        return tl.load(rows + sequence), tl.load(rows + sequence + 1)
    else:
        return sequence * n_rows, sequence * n_rows + n_rows


@triton.jit
def find_blocks(
    logit_at, element_at, there, live, H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr
):
    """Logits and elements of the blocks from here on; their loads do not wait for each other."""
    found = ()
    for nth in tl.static_range(GROUP):
        logit = tl.load(logit_at + nth * (H * R), mask=there, other=0.0)
        element = tl.load(element_at + nth * (H * D), mask=live & there, other=0.0)
        found = found + ((logit, element),)  # type: ignore[assignment]  # noqa: RUF005  # Triton's tuples know + only
    return found


@triton.jit
def scan_step(logit, element, state, row_at, mark_at, side, live):
    """The row before a block, and the state after it."""
    top, total, sums = state
    root = tl.rsqrt(total)  # two instructions; a division is eight
    tl.store(row_at, (sums * (root * root)).to(row_at.dtype.element_ty), mask=live)
    tl.store(mark_at, tl.where(side == 0, top, total))
    new_top = tl.maximum(top, logit)
    decay = tl.exp2((top - new_top) * TO_BASE_2)
    weight = tl.exp2((logit - new_top) * TO_BASE_2)
    return new_top, total * decay + weight, sums * decay + weight * element.to(tl.float32)


@triton.jit(do_not_specialize=["n_rows"])
def scan_kernel(
    pooled, logits, top_before, total_before, keys_before, values_before, summaries, marks, top_after, total_after,
    sums_after, rows,
    stride_pooled, stride_side, stride_marks, stride_after, stride_ts, stride_tr, stride_th, stride_ns, stride_nr, stride_nh,
    stride_ks, stride_kr, stride_kh, stride_kd, stride_vs, stride_vr, stride_vh, stride_vd, n_rows,
    H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, INITIAL: tl.constexpr, PACKED: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    side = program % 2
    r = program // 2 % R
    head = program // 2 // R % H
    sequence = program // 2 // R // H
    first, last = walk(sequence, rows, n_rows, PACKED)
    d = tl.arange(0, BLOCK_D)
    live = d < D
    top = tl.load(top_before + sequence * stride_ts + r * stride_tr + head * stride_th).to(tl.float32)
    total = 1.0
    if not INITIAL:
        total = tl.load(total_before + sequence * stride_ns + r * stride_nr + head * stride_nh)
    if side == 0:
        sums_at = keys_before + sequence * stride_ks + r * stride_kr + head * stride_kh + d * stride_kd
    else:
        sums_at = values_before + sequence * stride_vs + r * stride_vr + head * stride_vh + d * stride_vd
    state = (top, total, tl.load(sums_at, mask=live, other=0.0).to(tl.float32))

    wide_side = side.to(tl.int64)
    begin = first.to(tl.int64)
    logit_at = logits + (begin * H + head) * R + r
    element_at = pooled + wide_side * stride_pooled + (begin * H + head) * D + d
    row_at = summaries + wide_side * stride_side + ((begin * R + r) * H + head) * D + d
    mark_at = marks + wide_side * stride_marks + ((begin + sequence) * H + head) * R + r
    grouped = (last - first) // GROUP * GROUP
    ahead = find_blocks(logit_at, element_at, grouped > 0, live, H, R, D, GROUP)
    for done in tl.range(0, grouped, GROUP):
        found = ahead
        logit_at += GROUP * H * R
        element_at += GROUP * H * D
        ahead = find_blocks(logit_at, element_at, done + GROUP < grouped, live, H, R, D, GROUP)
        for nth in tl.static_range(GROUP):
            state = scan_step(
                found[nth][0], found[nth][1], state, row_at + nth * (R * H * D), mark_at + nth * (H * R), side, live
            )  # fmt: skip
        row_at += GROUP * R * H * D
        mark_at += GROUP * H * R
    for _ in tl.range(grouped, last - first):
        element = tl.load(element_at, mask=live, other=0.0)
        state = scan_step(tl.load(logit_at), element, state, row_at, mark_at, side, live)
        logit_at += H * R
        element_at += H * D
        row_at += R * H * D
        mark_at += H * R

    top, total, sums = state
    after = (sequence.to(tl.int64) * H + head) * R + r
    tl.store(mark_at, tl.where(side == 0, top, total))
    if side == 0:
        tl.store(top_after + after, top)
        tl.store(total_after + after, total)
    tl.store(sums_after + wide_side * stride_after + after * D + d, sums, mask=live)


def scan(pooled: Tensor, logits: Tensor, before: State, spans: Spans) -> tuple[Tensor, Tensor, State]:
    """Summaries ``[2, B, N, R, Hkv, D]`` in the dtype of `pooled`; top and total before each block and after each
    sequence's last, ``[2, rows + sequences, Hkv, R]``; and the state after the last block."""
    _, batch, n_rows, heads, d = pooled.shape
    r = logits.shape[-1]
    summaries = torch.empty(2, batch, n_rows, r, heads, d, dtype=pooled.dtype, device=pooled.device)
    marks = logits.new_empty(2, batch * n_rows + spans.sequences, heads, r)
    top, total = logits.new_empty(2, spans.sequences, heads, r)
    sums = logits.new_empty(2, spans.sequences, heads, r, d)
    total_before = before.top if before.total is None else before.total
    if spans.sequences:
        scan_kernel[(spans.sequences * heads * r * 2,)](
            pooled, logits, before.top, before.total, before.key_sums, before.value_sums, summaries, marks, top, total,
            sums, spans.rows,
            pooled.stride(0), summaries.stride(0), marks.stride(0), sums.stride(0), *before.top.stride(),
            *total_before.stride(), *before.key_sums.stride(), *before.value_sums.stride(), n_rows,
            H=heads, R=r, D=d, BLOCK_D=padded_head_dim(d), INITIAL=before.total is None, PACKED=spans.packed,
            GROUP=GROUP, num_warps=1,
        )  # fmt: skip
    after = State(*(x.transpose(1, 2) for x in (top, total, sums[0], sums[1])))
    return summaries, marks, after
