"""Backward kernel for queries on Hopper: interval, columns and extra keys of `kernels/attention/backward_queries.py`.

    s = log2(e) * scale * q k^T;  p = 2^(s - lse2);  dq = scale * sum ds k,  ds = p * (dout v^T - delta)

As in the forward kernel, one warp loads and warpgroups of 64 query rows compute, three at head dim 64, else two: s and dout v^T of
tile i + 1 are issued before the product ds k of tile i, whose weights stay in registers. Nothing is corrected, since the LSE is
known. Where all of a program's queries have one row of extra keys, it comes first.
At head dim 256 values have one slot and no registers are left for a third product in flight: dout v^T is issued after ds k is
done, and behind its own wait works the other warpgroup. The result leaves through the tiles of dout.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from ..geometry import Geometry
from ..launch import Gradients, Inputs
from ..repeated_launch import Launch, alike, strides
from ..tiles import LOG2_E
from .beside import BESIDE, beside_arguments, beside_constants, beside_tensors, one_row
from .blocks import (
    clean,
    column_runs,
    extra_run,
    hide,
    interval_bounds,
    load_beside,
    load_extra,
    load_keys,
    locate_queries,
    narrowed,
    own_block,
    own_tiles,
    place_keys,
)
from .descriptors import copyable, head_first_tiles, programs_of, walk_arguments
from .results import store_result
from .ring import barriers, make_ring

ROWS = 64  # of a warpgroup


@gluon.jit
def _load(
    sources, queries, ring, where,
    CHUNKS: gl.constexpr, SIDES: gl.constexpr, EXTRA: gl.constexpr, ALIGNED: gl.constexpr, PACKED: gl.constexpr,
    GROUP: gl.constexpr, APART: gl.constexpr,
):  # fmt: skip
    q, d_out, k, v, column_k, column_v, extra_k, extra_v = sources
    q_tiles, d_tiles, q_ready, q_empty = queries
    k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty = ring
    (
        blocks, documents, parameters, column_ranges, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
        extra_block, total,
    ) = where  # fmt: skip
    CONSUMERS: gl.constexpr = q_tiles.type.shape[0]
    ROWS: gl.constexpr = q.block_type.shape[2]
    KEYS: gl.constexpr = k.block_type.shape[2]
    loaded = 0
    phase = 0
    for nth in range(gl.program_id(0), total, gl.num_programs(0)):
        batch, head, block, document, x, stop, row, k_start, _, begin, tiles = locate_queries(
            own_block(nth, total), blocks, documents, parameters, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, ROWS * CONSUMERS, KEYS,
        )  # fmt: skip
        runs = column_runs(column_ranges, block, SIDES, KEYS)
        kv_head = head // GROUP
        ahead = 0
        if not APART:  # keys come while the results of the block before leave through dout's tiles
            ahead = gl.minimum(tiles, v_tiles.type.shape[0])
            for tile in range(0, ahead):
                at = k_start + begin + tile * KEYS
                load_keys(k, v, batch, kv_head, at, loaded, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, False)
                loaded += 1
        for c in gl.static_range(CONSUMERS):
            ready = q_ready.index(c)
            mbarrier.wait(q_empty.index(c), phase ^ 1)
            mbarrier.expect(ready, q.block_type.nbytes + d_out.block_type.nbytes)
            tma.async_copy_global_to_shared(q, [batch, head, row + ROWS * c, 0], ready, q_tiles.index(c))
            tma.async_copy_global_to_shared(d_out, [batch, head, row + ROWS * c, 0], ready, d_tiles.index(c))
        phase ^= 1
        if ALIGNED:
            loaded = load_extra(
                extra_k, extra_v, batch, kv_head, documents, document, x, stop, extra_block, EXTRA, EXTRA, loaded,
                k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, PACKED, False,
            )  # fmt: skip
        for tile in range(ahead, tiles):
            at = k_start + begin + tile * KEYS
            load_keys(k, v, batch, kv_head, at, loaded, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, False)
            loaded += 1
        loaded = load_beside(
            column_k, column_v, extra_k, extra_v, runs, documents, batch, kv_head, document, x, stop,
            loaded, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, extra_block, SIDES, 0 if ALIGNED else EXTRA, PACKED,
            False,
        )  # fmt: skip


@gluon.jit
def _step(
    q, d_out, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, used, first, start, stop, held, dq, lse2, delta,
    low, high, positions, scale2, KIND: gl.constexpr, PACKED: gl.constexpr,
):  # fmt: skip
    """Take tile number `used` of the ring, and end the product of the tile before it, whose weights `held` are."""
    SLOTS: gl.constexpr = k_tiles.type.shape[0]
    KEYS: gl.constexpr = k_tiles.type.shape[1]
    ROWS: gl.constexpr = q.shape[0]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    p_layout: gl.constexpr = held.type.layout
    ELEMENT: gl.constexpr = k_tiles.dtype
    V_SLOTS: gl.constexpr = v_tiles.type.shape[0]
    LATE: gl.constexpr = V_SLOTS < SLOTS
    slot = used % SLOTS
    phase = used // SLOTS & 1
    v_slot = used % V_SLOTS
    v_phase = used // V_SLOTS & 1
    # For the one before the first tile that tile stands in: it is there, and its weights are 0.
    before = gl.where(used == first, used, used - 1) % SLOTS
    j = place_keys(start, stop, positions, s_layout, KEYS, KIND)
    mbarrier.wait(k_ready.index(slot), phase)
    # A branch costs instructions: only last tiles are masked and short.
    if PACKED and KIND != "none" and start + KEYS > stop:
        clean(k_tiles.index(slot), start, 0, stop)
    blank = gl.zeros([ROWS, KEYS], gl.float32, s_layout)
    logits = warpgroup_mma(q, k_tiles.index(slot).permute((1, 0)), blank, use_acc=False, is_async=True)
    if not LATE:
        mbarrier.wait(v_ready.index(v_slot), v_phase)
        d_weights = warpgroup_mma(d_out, v_tiles.index(v_slot).permute((1, 0)), blank, use_acc=False, is_async=True)
    dq = warpgroup_mma(held, k_tiles.index(before), dq, is_async=True)
    logits = warpgroup_mma_wait(1 if LATE else 2, deps=(logits,))
    weights = gl.exp2(hide(logits * scale2 - lse2[:, None], j, low, high, KIND))
    # A second look at a barrier that has been passed ends a block of instructions: without it the compiler waits for the
    # product before it takes the powers.
    if LATE:
        mbarrier.wait(k_ready.index(slot), phase)
        dq, held, weights = warpgroup_mma_wait(0, deps=(dq, held, weights))
        mbarrier.arrive(k_empty.index(before), pred=used > first)
        mbarrier.wait(v_ready.index(v_slot), v_phase)
        d_weights = warpgroup_mma(d_out, v_tiles.index(v_slot).permute((1, 0)), blank, use_acc=False, is_async=True)
        d_weights = warpgroup_mma_wait(0, deps=(d_weights,))
    else:
        mbarrier.wait(v_ready.index(v_slot), v_phase)
        d_weights, weights = warpgroup_mma_wait(1, deps=(d_weights, weights))
    mbarrier.arrive(v_empty.index(v_slot))
    d_logits = weights * (d_weights - delta[:, None])
    if PACKED and KIND != "none":
        d_logits = gl.where(weights == 0.0, 0.0, d_logits)  # another document's values may be NaN
    if not LATE:
        mbarrier.wait(k_ready.index(slot), phase)
        dq, held, d_logits = warpgroup_mma_wait(0, deps=(dq, held, d_logits))
        mbarrier.arrive(k_empty.index(before), pred=used > first)
    held = narrowed(d_logits, p_layout, ELEMENT)
    return held, dq


@gluon.jit
def _skip(k_ready, k_empty, v_ready, v_empty, used):
    """Let a tile pass that none of the warpgroup's rows see."""
    SLOTS: gl.constexpr = k_ready.type.shape[0]
    V_SLOTS: gl.constexpr = v_ready.type.shape[0]
    mbarrier.wait(k_ready.index(used % SLOTS), used // SLOTS & 1)
    mbarrier.arrive(k_empty.index(used % SLOTS))
    mbarrier.wait(v_ready.index(used % V_SLOTS), used // V_SLOTS & 1)
    mbarrier.arrive(v_empty.index(used % V_SLOTS))


@gluon.jit
def _compute(
    queries, ring, results, where, c,
    CHUNKS: gl.constexpr, SIDES: gl.constexpr, EXTRA: gl.constexpr, ALIGNED: gl.constexpr, PACKED: gl.constexpr,
    APART: gl.constexpr,
):  # fmt: skip
    q_tiles, d_tiles, q_ready, q_empty = queries
    k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty = ring
    out_tiles, dq_out, dq_rows, lse2, delta, positions, stride_gb, stride_gt, stride_gh, stride_row, scale, scale2 = (
        results
    )
    (
        blocks, documents, parameters, column_ranges, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
        extra_block, total,
    ) = where  # fmt: skip
    CONSUMERS: gl.constexpr = q_tiles.type.shape[0]
    SLOTS: gl.constexpr = k_tiles.type.shape[0]
    KEYS: gl.constexpr = k_tiles.type.shape[1]
    ROWS: gl.constexpr = q_tiles.type.shape[1]
    D: gl.constexpr = q_tiles.type.shape[2]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    COLUMNS: gl.constexpr = "before" if SIDES == 1 else "beside"
    q_tile = q_tiles.index(c)
    d_tile = d_tiles.index(c)
    used = 0
    phase = 0
    for nth in range(gl.program_id(0), total, gl.num_programs(0)):
        batch, head, block, document, x_block, stop, row, _k_start, own_keys, begin, tiles = locate_queries(
            own_block(nth, total), blocks, documents, parameters, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, ROWS * CONSUMERS, KEYS,
        )  # fmt: skip
        x = x_block + c * ROWS
        row += c * ROWS
        i = x + gl.arange(0, ROWS, row_layout)
        low, high = interval_bounds(i, own_keys, left, right, parameters, CHUNKS)
        column, whole_columns, column_stop, behind, behind_stop = column_runs(column_ranges, block, SIDES, KEYS)
        # Tiles of columns follow at once, while the last tile's weights are still held: then none is let pass before them.
        follow: gl.constexpr = SIDES > 0 or (EXTRA > 0 and not ALIGNED)
        first_tile, uncut, cut, end = own_tiles(
            x, stop, own_keys, begin, tiles, left, right, parameters, CHUNKS, ROWS, KEYS, False, follow
        )
        rows_at = (batch.to(gl.int64) * n_heads + head) * stride_row + row + gl.arange(0, ROWS, row_layout)
        lse_row = gl.load(lse2 + rows_at, mask=i < stop, other=float("inf"))
        delta_row = gl.load(delta + rows_at, mask=i < stop, other=0.0)
        held = gl.zeros([ROWS, KEYS], q_tiles.dtype, gl.DotOperandLayout(0, o_layout, 2))
        dq = gl.zeros([ROWS, D], gl.float32, o_layout)
        mbarrier.wait(q_ready.index(c), phase)
        phase ^= 1
        if ALIGNED:  # all of a tile of extra keys, and its product at once: tiles may be let pass behind it
            held, dq = _step(
                q_tile, d_tile, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, used, used, 0, EXTRA,
                held, dq, lse_row, delta_row, low, high, positions, scale2, "none", PACKED,
            )  # fmt: skip
            dq = warpgroup_mma(held, k_tiles.index(used % SLOTS), dq, is_async=True)
            dq, held = warpgroup_mma_wait(0, deps=(dq, held))
            mbarrier.arrive(k_empty.index(used % SLOTS))
            used += 1
            held = gl.zeros([ROWS, KEYS], q_tiles.dtype, gl.DotOperandLayout(0, o_layout, 2))
        for _ in range(0, first_tile):
            _skip(k_ready, k_empty, v_ready, v_empty, used)
            used += 1
        first = used
        edges = (first_tile, uncut, cut, end)
        for part in gl.static_range(3):
            for tile in range(edges[part], edges[part + 1]):
                held, dq = _step(
                    q_tile, d_tile, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, used, first, begin + tile * KEYS,
                    own_keys, held, dq, lse_row, delta_row, low, high, positions, scale2,
                    "both" if part == 0 else "none" if part == 1 else "high", PACKED,
                )  # fmt: skip
                used += 1
        if SIDES > 0:
            for at in range(column, whole_columns, KEYS):
                held, dq = _step(
                    q_tile, d_tile, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, used, first, at, column_stop,
                    held, dq, lse_row, delta_row, low, high, positions, scale2, "none", PACKED,
                )  # fmt: skip
                used += 1
            for at in range(whole_columns, column_stop, KEYS):
                held, dq = _step(
                    q_tile, d_tile, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, used, first, at, column_stop,
                    held, dq, lse_row, delta_row, low, high, positions, scale2, COLUMNS, PACKED,
                )  # fmt: skip
                used += 1
        if SIDES > 1:
            for at in range(behind, behind_stop, KEYS):
                held, dq = _step(
                    q_tile, d_tile, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, used, first, at, behind_stop,
                    held, dq, lse_row, delta_row, low, high, positions, scale2, "beside", PACKED,
                )  # fmt: skip
                used += 1
        if EXTRA > 0 and not ALIGNED:
            at_first, extra_stop, _ = extra_run(x_block, stop, document, documents, extra_block, EXTRA, PACKED)
            own_extra = i // extra_block * EXTRA
            for at in range(at_first, extra_stop, KEYS):
                held, dq = _step(
                    q_tile, d_tile, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, used, first, at, extra_stop,
                    held, dq, lse_row, delta_row, own_extra, own_extra + EXTRA, positions, scale2, "both", PACKED,
                )  # fmt: skip
                used += 1
        if APART:
            mbarrier.arrive(q_empty.index(c))
        dq = warpgroup_mma(held, k_tiles.index((used - 1) % SLOTS), dq, is_async=True)
        dq, held = warpgroup_mma_wait(0, deps=(dq, held))
        mbarrier.arrive(k_empty.index((used - 1) % SLOTS))
        for _ in range(end, tiles):
            _skip(k_ready, k_empty, v_ready, v_empty, used)
            used += 1
        result = (dq * scale).to(out_tiles.dtype)
        store_result(
            result, out_tiles.index(c), dq_out, dq_rows, batch, head, row, stop - x, stride_gb, stride_gt, stride_gh,
            PACKED, APART,
        )  # fmt: skip
        if not APART:
            mbarrier.arrive(q_empty.index(c))
    tma.store_wait(0)


_NUMBERS = [
    "n_queries",
    "n_keys",
    "n_blocks",
    "n_heads",
    "offset",
    "total",
    "left",
    "right",
    "extra_block",
    "stride_row",
]


@gluon.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=["stride_row", "extra_block"])
def backward_queries_kernel(
    q, d_out, k, v, column_k, column_v, extra_k, extra_v, dq_out, dq_rows, lse2, delta,
    blocks, documents, parameters, column_ranges, positions,
    n_blocks, n_heads, n_queries, n_keys, offset, left, right, extra_block, total,
    stride_gb, stride_gt, stride_gh, stride_row, scale, scale2,
    CHUNKS: gl.constexpr, SIDES: gl.constexpr, EXTRA: gl.constexpr, ALIGNED: gl.constexpr, PACKED: gl.constexpr,
    GROUP: gl.constexpr, SLOTS: gl.constexpr, V_SLOTS: gl.constexpr, APART: gl.constexpr, CONSUMERS: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = q.block_type.shape[2]
    KEYS: gl.constexpr = k.block_type.shape[2]
    D: gl.constexpr = k.block_type.shape[3]
    flat: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, D], q.dtype)
    q_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, ROWS, D], flat)
    d_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, ROWS, D], flat)
    out_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, ROWS, D], flat) if APART else d_tiles
    ring = make_ring(q.dtype, SLOTS, V_SLOTS, KEYS, D, CONSUMERS)
    q_ready = barriers(CONSUMERS, 1)
    q_empty = barriers(CONSUMERS, 1)
    queries = (q_tiles, d_tiles, q_ready, q_empty)
    results = (
        out_tiles, dq_out, dq_rows, lse2, delta, positions, stride_gb, stride_gt, stride_gh, stride_row, scale, scale2,
    )  # fmt: skip
    where = (
        blocks, documents, parameters, column_ranges, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
        extra_block, total,
    )  # fmt: skip
    sources = (q, d_out, k, v, column_k, column_v, extra_k, extra_v)
    if CONSUMERS == 2:
        gl.warp_specialize([
            (_compute, (queries, ring, results, where, 0, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, APART)),
            (_compute, (queries, ring, results, where, 1, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, APART)),
            (_load, (sources, queries, ring, where, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, GROUP, APART)),
        ], [4, 1], [REGISTERS, 24])  # fmt: skip
    else:
        gl.warp_specialize([
            (_compute, (queries, ring, results, where, 0, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, APART)),
            (_compute, (queries, ring, results, where, 1, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, APART)),
            (_compute, (queries, ring, results, where, 2, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, APART)),
            (_load, (sources, queries, ring, where, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, GROUP, APART)),
        ], [4, 4, 1], [REGISTERS, REGISTERS, 24])  # fmt: skip


def backward_queries(inputs: Inputs, gradients: Gradients, where: Geometry, scale: float) -> Tensor:
    """dq in q's dtype."""
    q, d_out = inputs.q, copyable(gradients.d_out)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    if dq.numel():
        key = (backward_queries_kernel, alike(*inputs, d_out))
        launch = where.launches.kept(key, lambda: _launch(inputs, gradients, dq, where))
        launch(
            q=q, d_out=d_out, k=inputs.k, v=inputs.v, dq_out=dq, dq_rows=dq, lse2=gradients.lse2, delta=gradients.delta,
            scale=scale, scale2=scale * LOG2_E, **beside_tensors(inputs, where),
        )  # fmt: skip
    return dq


def _launch(inputs: Inputs, gradients: Gradients, dq: Tensor, where: Geometry) -> Launch:
    constants = backward_queries_constants(where, dq.shape[2] // inputs.k.shape[2], dq.shape[3])
    rows, keys = ROWS * constants["CONSUMERS"], constants.pop("KEYS")
    grid, fixed = walk_arguments(inputs, where, "q", rows, programs_of(dq.device))
    fixed |= constants | beside_arguments(where, rows, dq.device)
    fixed |= strides("gb gt gh", dq) | {"stride_row": gradients.lse2.stride(1)}
    tiles = head_first_tiles(ROWS, "q", "d_out", "dq_out") | head_first_tiles(keys, "k", "v", *BESIDE)
    return Launch(backward_queries_kernel, grid, fixed, tiles)


def backward_queries_constants(where: Geometry, group: int, head_dim: int) -> dict[str, Any]:
    """What the kernel is compiled for, and the number of keys of a tile."""
    slots = 2 if head_dim == 256 else 4
    consumers = 3 if head_dim == 64 else 2
    extra = beside_constants(where)
    return {
        "CHUNKS": where.chunks,
        "PACKED": where.packed,
        "GROUP": group,
        "SLOTS": slots,
        "V_SLOTS": 1 if head_dim == 256 else slots,
        "APART": head_dim < 256,
        "KEYS": 64,
        "CONSUMERS": consumers,
        "REGISTERS": 160 if consumers == 3 else 240,
        "ALIGNED": head_dim < 256 and extra["EXTRA"] == 64 and one_row(where, consumers * ROWS),
        **extra,
    }
