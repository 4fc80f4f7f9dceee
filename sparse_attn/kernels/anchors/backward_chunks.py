"""Third and fourth kernel of anchors: chunks of blocks walked back by themselves, and what each chunk gets from later ones.

With L_n the log of row n's total, g_n the gradient of row n (keys and values side by side), c_n = g_n @ row n:

    G_n = g_n + exp(L_n - L_{n+1}) G_{n+1};   C_n likewise from c_n

`backward_chunks` takes G and C to be zero behind a chunk, and leaves what the chunk adds to them; `backward_carry` walks
along the chunks of a sequence, and leaves in each one's place what comes from behind it; before the first chunk, these are
the gradients of the state. Reading rows and their gradients once bounds the first; a program is one warp, for one row.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..attention.tiles import padded_head_dim
from .scan import TO_BASE_2, State, walk
from .spans import Spans

GROUP = 4  # blocks whose loads are under way at once
FAR = 8  # chunks likewise


class Carries(NamedTuple):
    """Attributes:
    sums, deltas: What comes from behind each chunk, ``[2, chunks, Hkv, R, D]`` of keys and values and ``[chunks, Hkv, R]``.
    by_row: c_n, ``[rows, Hkv, R]``.
    first, d_sums: Gradients of the state before the first block: of its total, or of its one logit, ``[sequences, R,
        Hkv]``, and of its sums.
    """

    sums: Tensor
    deltas: Tensor
    by_row: Tensor
    first: Tensor
    d_sums: tuple[Tensor, Tensor]


@triton.jit
def chunk_span(chunk, chunks, n_rows, n_chunks, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """A chunk's sequence, first row and end."""
    if PACKED:
        return tl.load(chunks + 3 * chunk), tl.load(chunks + 3 * chunk + 1), tl.load(chunks + 3 * chunk + 2)
    else:
        sequence = chunk // n_chunks
        first = sequence * n_rows + chunk % n_chunks * CHUNK
        return sequence, first, tl.minimum(first + CHUNK, sequence * n_rows + n_rows)


@triton.jit(do_not_specialize=["n_rows", "n_chunks"])
def backward_chunks_kernel(
    summaries, d_keys, d_values, marks, by_row, carries, carried_deltas, chunks,
    stride_side, stride_marks, stride_carries, n_rows, n_chunks,
    H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PACKED: tl.constexpr, CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    r = program % R
    head = program // R % H
    chunk = program // R // H
    sequence, first, last = chunk_span(chunk, chunks, n_rows, n_chunks, CHUNK, PACKED)
    d = tl.arange(0, BLOCK_D)
    live = d < D
    end = last.to(tl.int64)
    mark_at = marks + ((sequence + end) * H + head) * R + r
    later_top, share = tl.load(mark_at), 1.0 / tl.load(mark_at + stride_marks)
    mark_at -= H * R
    own_at = by_row + ((end - 1) * H + head) * R + r
    row_at = (((end - 1) * R + r) * H + head) * D + d
    sum_k = tl.zeros([BLOCK_D], tl.float32)
    sum_v = tl.zeros([BLOCK_D], tl.float32)
    delta = 0.0
    for done in tl.range(0, last - first, GROUP):
        found = ()
        for nth in tl.static_range(GROUP):
            there = done + nth < last - first
            at = row_at - nth * (R * H * D)
            found = found + (  # type: ignore[assignment]  # noqa: RUF005  # Triton's tuples know + only
                (
                    tl.load(mark_at - nth * (H * R), mask=there, other=0.0),
                    tl.load(mark_at + stride_marks - nth * (H * R), mask=there, other=1.0),
                    tl.load(d_keys + at, mask=live & there, other=0.0),
                    tl.load(d_values + at, mask=live & there, other=0.0),
                    tl.load(summaries + at, mask=live & there, other=0.0),
                    tl.load(summaries + stride_side + at, mask=live & there, other=0.0),
                ),
            )
        for nth in tl.static_range(GROUP):
            there = done + nth < last - first
            top, total, g_k, g_v, row_k, row_v = found[nth]  # type: ignore[var-annotated]
            g_k, g_v = g_k.to(tl.float32), g_v.to(tl.float32)
            own = tl.sum(g_k * row_k.to(tl.float32) + g_v * row_v.to(tl.float32), 0)
            tl.store(own_at - nth * (H * R), own, mask=there)
            # Before the chunk nothing is loaded, and the sums stay.
            decay = tl.where(there, tl.exp2((top - later_top) * TO_BASE_2) * (total * share), 1.0)
            delta = own + decay * delta
            sum_k = g_k + decay * sum_k
            sum_v = g_v + decay * sum_v
            later_top, share = top, 1.0 / total
        mark_at -= GROUP * H * R
        own_at -= GROUP * H * R
        row_at -= GROUP * R * H * D
    place = (chunk.to(tl.int64) * H + head) * R + r
    tl.store(carries + place * D + d, sum_k, mask=live)
    tl.store(carries + stride_carries + place * D + d, sum_v, mask=live)
    tl.store(carried_deltas + place, delta)


@triton.jit(do_not_specialize=["n_rows", "n_chunks"])
def backward_carry_kernel(
    marks, carries, carried_deltas, keys_before, values_before, d_total_after, d_keys_after, d_values_after,
    d_first, d_keys_before, d_values_before, rows, sequence_chunks,
    stride_marks, stride_carries, stride_ks, stride_kr, stride_kh, stride_kd, stride_vs, stride_vr, stride_vh, stride_vd,
    n_rows, n_chunks,
    H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, INITIAL: tl.constexpr, AFTER: tl.constexpr,
    PACKED: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    r = program % R
    head = program // R % H
    sequence = program // R // H
    first_row, end_row = walk(sequence, rows, n_rows, PACKED)
    first, last = walk(sequence, sequence_chunks, n_chunks, PACKED)
    d = tl.arange(0, BLOCK_D)
    live = d < D
    state = (sequence.to(tl.int64) * H + head) * R + r
    marks += state
    end_at = end_row.to(tl.int64) * (H * R)
    later_top = tl.load(marks + end_at)
    later_total = tl.load(marks + stride_marks + end_at)
    sum_k = tl.zeros([BLOCK_D], tl.float32)
    sum_v = tl.zeros([BLOCK_D], tl.float32)
    delta = 0.0
    if AFTER:  # the state after the last block is a row too, but for the division by its total
        sum_k = tl.load(d_keys_after + state * D + d, mask=live, other=0.0) * later_total
        sum_v = tl.load(d_values_after + state * D + d, mask=live, other=0.0) * later_total
        delta = -tl.load(d_total_after + state) * later_total
    for done in tl.range(0, last - first, GROUP):
        found = ()
        for nth in tl.static_range(GROUP):
            chunk = last - 1 - done - nth
            there = chunk >= first
            row = first_row + (chunk - first) * CHUNK
            at_mark = row.to(tl.int64) * (H * R)
            place = (chunk.to(tl.int64) * H + head) * R + r
            found = found + (  # type: ignore[assignment]  # noqa: RUF005
                (
                    tl.load(marks + at_mark, mask=there, other=0.0),
                    tl.load(marks + stride_marks + at_mark, mask=there, other=1.0),
                    tl.load(carries + place * D + d, mask=live & there, other=0.0),
                    tl.load(carries + stride_carries + place * D + d, mask=live & there, other=0.0),
                    tl.load(carried_deltas + place, mask=there, other=0.0),
                ),
            )
        for nth in tl.static_range(GROUP):
            chunk = last - 1 - done - nth
            there = chunk >= first
            place = (chunk.to(tl.int64) * H + head) * R + r
            tl.store(carries + place * D + d, sum_k, mask=live & there)
            tl.store(carries + stride_carries + place * D + d, sum_v, mask=live & there)
            tl.store(carried_deltas + place, delta, mask=there)
            top, total, own_k, own_v, own = found[nth]  # type: ignore[var-annotated]
            decay = tl.where(there, tl.exp2((top - later_top) * TO_BASE_2) * (total / later_total), 1.0)
            delta = own + decay * delta
            sum_k = own_k + decay * sum_k
            sum_v = own_v + decay * sum_v
            later_top, later_total = tl.where(there, top, later_top), tl.where(there, total, later_total)

    d_k, d_v, d_one = sum_k / later_total, sum_v / later_total, -delta / later_total
    if INITIAL:  # one element of weight 1: its logit scales total and sums
        k_at = keys_before + sequence * stride_ks + r * stride_kr + head * stride_kh + d * stride_kd
        v_at = values_before + sequence * stride_vs + r * stride_vr + head * stride_vh + d * stride_vd
        key = tl.load(k_at, mask=live, other=0.0).to(tl.float32)
        d_one += tl.sum(d_k * key + d_v * tl.load(v_at, mask=live, other=0.0).to(tl.float32), 0)
    tl.store(d_first + state, d_one)
    tl.store(d_keys_before + state * D + d, d_k, mask=live)
    tl.store(d_values_before + state * D + d, d_v, mask=live)


def backward_chunks(
    summaries: Tensor,
    marks: Tensor,
    d_rows: tuple[Tensor, Tensor],
    before: State,
    d_after: tuple[Tensor, Tensor, Tensor] | None,
    spans: Spans,
) -> Carries:
    """From gradients of rows, and of the total and sums after the last block, to what each chunk gets from behind it."""
    _, batch, n_rows, r, heads, d = summaries.shape
    sums = marks.new_empty(2, spans.n_chunks, heads, r, d)
    deltas = marks.new_empty(spans.n_chunks, heads, r)
    by_row = marks.new_empty(batch * n_rows, heads, r)
    first = marks.new_empty(spans.sequences, heads, r)
    d_sums = marks.new_empty(2, spans.sequences, heads, r, d)
    constants = {
        "H": heads,
        "R": r,
        "D": d,
        "BLOCK_D": padded_head_dim(d),
        "PACKED": spans.packed,
        "CHUNK": spans.chunk,
    }
    if spans.n_chunks:
        backward_chunks_kernel[(spans.n_chunks * heads * r,)](
            summaries, *d_rows, marks, by_row, sums, deltas, spans.chunks,
            summaries.stride(0), marks.stride(0), sums.stride(0), n_rows, spans.chunks_a_sequence,
            **constants, GROUP=GROUP, num_warps=1,
        )  # fmt: skip
    if spans.sequences:
        backward_carry_kernel[(spans.sequences * heads * r,)](
            marks, sums, deltas, before.key_sums, before.value_sums, *(d_after or (None, None, None)), first, *d_sums,
            spans.rows, spans.sequence_chunks,
            marks.stride(0), sums.stride(0), *before.key_sums.stride(), *before.value_sums.stride(), n_rows,
            spans.chunks_a_sequence,
            **constants, INITIAL=before.total is None, AFTER=d_after is not None, GROUP=FAR, num_warps=1,
        )  # fmt: skip
    return Carries(sums, deltas, by_row, first.transpose(1, 2), tuple(x.transpose(1, 2) for x in d_sums))
