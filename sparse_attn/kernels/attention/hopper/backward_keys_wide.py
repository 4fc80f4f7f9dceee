"""Backward kernel for keys and values on Hopper where heads are wide: dv in one launch, dk in another.

    s = log2(e) * scale * k q^T;  p = 2^(s - lse2);  dv = sum p dout
    dk = scale * sum ds q,  ds = p * (v dout^T - delta)

Sums of 64 keys x 256 for both are all of a thread's registers, where `backward_keys.py` keeps both; here a warpgroup of 64 keys
keeps one, and five products are made instead of four. For dk the queries' tiles have two slots and those of dout, which are
read first and let go early, one: 2 x 64 keys of k and v, three tiles of 64 rows, 224 KiB.
"""

from functools import partial
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
from .blocks import clean, forgotten, locate_keys, narrowed, own_block, own_query_tiles, query_bounds
from .descriptors import copyable, head_first_tiles, programs_of, rows_tiles, walk_arguments
from .query_ring import load_held, skip_queries
from .results import store_result
from .ring import barriers, make_ring, odd_turn

KEYS = 64  # of a warpgroup


@gluon.jit
def _load(
    sources, keys, ring, numbers, where,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr, VALUES: gl.constexpr,
):  # fmt: skip
    q, d_out, k, v, lse2, delta = sources
    k_tiles, v_tiles, k_ready, k_empty = keys
    q_tiles, d_tiles, q_ready, q_empty, d_ready, d_empty = ring
    lse_tiles, delta_tiles = numbers
    blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right, total = where
    CONSUMERS: gl.constexpr = k_tiles.type.shape[0]
    KEYS: gl.constexpr = k.block_type.shape[2]
    ROWS: gl.constexpr = q.block_type.shape[2]
    SLOTS: gl.constexpr = q_tiles.type.shape[0]
    D_SLOTS: gl.constexpr = d_tiles.type.shape[0]
    loaded = 0
    phase = 0
    for nth in range(gl.program_id(0), total, gl.num_programs(0)):
        batch, kv_head, _, _, token, row, _, _, _begin, tiles = locate_keys(
            own_block(nth, total), blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, KEYS * CONSUMERS, ROWS,
        )  # fmt: skip
        load_held(k, v, batch, kv_head, token, phase, k_tiles, v_tiles, k_ready, k_empty, VALUES)
        phase ^= 1
        for head in range(kv_head * GROUP, kv_head * GROUP + GROUP):
            line = batch * n_kv_heads * GROUP + head
            for tile in range(tiles):
                at = row + tile * ROWS
                slot = loaded % SLOTS
                ready = q_ready.index(slot)
                mbarrier.wait(q_empty.index(slot), odd_turn(loaded, SLOTS) ^ 1)
                mbarrier.expect(ready, q.block_type.nbytes + lse2.block_type.nbytes)
                tma.async_copy_global_to_shared(q, [batch, head, at, 0], ready, q_tiles.index(slot))
                tma.async_copy_global_to_shared(lse2, [line, at], ready, lse_tiles.index(slot))
                d_slot = loaded % D_SLOTS
                d_there = d_ready.index(d_slot)
                mbarrier.wait(d_empty.index(d_slot), odd_turn(loaded, D_SLOTS) ^ 1)
                mbarrier.expect(d_there, d_out.block_type.nbytes + (0 if VALUES else delta.block_type.nbytes))
                tma.async_copy_global_to_shared(d_out, [batch, head, at, 0], d_there, d_tiles.index(d_slot))
                if not VALUES:
                    tma.async_copy_global_to_shared(delta, [line, at], d_there, delta_tiles.index(d_slot))
                loaded += 1


@gluon.jit
def _step(
    k, v, ring, numbers, used, start, first_query, own_keys, acc, low, high, scale2,
    MASKED: gl.constexpr, PACKED: gl.constexpr, VALUES: gl.constexpr,
):  # fmt: skip
    """Add the share of the queries that are number `used` in the ring. Tiles without a mask lie inside the document."""
    q_tiles, d_tiles, q_ready, q_empty, d_ready, d_empty = ring
    lse_tiles, delta_tiles = numbers
    SLOTS: gl.constexpr = q_tiles.type.shape[0]
    D_SLOTS: gl.constexpr = d_tiles.type.shape[0]
    ROWS: gl.constexpr = q_tiles.type.shape[1]
    KEYS: gl.constexpr = acc.shape[0]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    ELEMENT: gl.constexpr = q_tiles.dtype
    slot = used % SLOTS
    d_slot = used % D_SLOTS
    q_tile = q_tiles.index(slot)
    d_tile = d_tiles.index(d_slot)
    mbarrier.wait(q_ready.index(slot), odd_turn(used, SLOTS))
    if PACKED and MASKED and (start < first_query) | (start + ROWS > own_keys):
        mbarrier.wait(d_ready.index(d_slot), odd_turn(used, D_SLOTS))
        clean(q_tile, start, first_query, own_keys)
        clean(d_tile, start, first_query, own_keys)
    blank = gl.zeros([KEYS, ROWS], gl.float32, s_layout)
    logits = warpgroup_mma(k, q_tile.permute((1, 0)), blank, use_acc=False, is_async=True)
    mbarrier.wait(d_ready.index(d_slot), odd_turn(used, D_SLOTS))
    if VALUES:
        logits = warpgroup_mma_wait(0, deps=(logits,))
    else:
        d_weights = blank - delta_tiles.index(d_slot).load(s_layout)  # the product begins there
        d_weights = warpgroup_mma(v, d_tile.permute((1, 0)), d_weights, is_async=True)
        logits = warpgroup_mma_wait(1, deps=(logits,))
    lse_row = lse_tiles.index(slot).load(s_layout)  # not before: it takes 16 registers
    if MASKED:
        i = (start + gl.arange(0, ROWS, gl.SliceLayout(0, s_layout)))[None, :]
        keep = (low[:, None] <= i) & (i < high[:, None])
        weights = gl.exp2(gl.where(keep, logits * scale2 - lse_row, float("-inf")))
    else:
        weights = gl.exp2(logits * scale2 - lse_row)
    if VALUES:
        mbarrier.arrive(q_empty.index(slot))
        p = narrowed(weights, p_layout, ELEMENT)
        acc = warpgroup_mma(p, d_tile, acc, is_async=True)
        acc, p = warpgroup_mma_wait(0, deps=(acc, p))
        mbarrier.arrive(d_empty.index(d_slot))
    else:
        # A second look at a barrier that has been passed: powers are taken before the product is waited for.
        mbarrier.wait(d_ready.index(d_slot), odd_turn(used, D_SLOTS))
        d_weights, weights = warpgroup_mma_wait(0, deps=(d_weights, weights))
        mbarrier.arrive(d_empty.index(d_slot))
        d_logits = weights * d_weights
        if MASKED and PACKED:
            d_logits = gl.where(keep, d_logits, 0.0)  # another document's delta may be NaN
        ds = narrowed(d_logits, p_layout, ELEMENT)
        acc = warpgroup_mma(ds, q_tile, acc, is_async=True)
        acc, ds = warpgroup_mma_wait(0, deps=(acc, ds))
        mbarrier.arrive(q_empty.index(slot))
    return acc


@gluon.jit
def _skip(ring, used):
    """Let a tile pass that sees none of the warpgroup's keys."""
    _, _, q_ready, q_empty, d_ready, d_empty = ring
    skip_queries(used, q_ready, q_empty)
    skip_queries(used, d_ready, d_empty)


@gluon.jit
def _compute(
    keys, ring, numbers, results, where, c,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr, VALUES: gl.constexpr,
):  # fmt: skip
    k_tiles, v_tiles, k_ready, k_empty = keys
    q_tiles = ring[0]
    out, out_rows, stride_gb, stride_gt, stride_gh, scale, scale2 = results
    blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right, total = where
    CONSUMERS: gl.constexpr = k_tiles.type.shape[0]
    KEYS: gl.constexpr = k_tiles.type.shape[1]
    D: gl.constexpr = k_tiles.type.shape[2]
    ROWS: gl.constexpr = q_tiles.type.shape[1]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    k_tile = k_tiles.index(c)
    v_tile = v_tiles.index(c)
    used = 0
    phase = 0
    for nth in range(gl.program_id(0), total, gl.num_programs(0)):
        _, _, x, stop, _, _, own_keys, first_query, begin, tiles = locate_keys(
            own_block(nth, total), blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, KEYS * CONSUMERS, ROWS,
        )  # fmt: skip
        x += c * KEYS
        j = x + gl.arange(0, KEYS, gl.SliceLayout(1, s_layout))
        low, high = query_bounds(j, first_query, own_keys, left, right, parameters, CHUNKS)

        first, free, free_end, end = own_query_tiles(
            x, stop, first_query, own_keys, begin, tiles, left, right, parameters, CHUNKS, KEYS, ROWS
        )
        acc = gl.zeros([KEYS, D], gl.float32, o_layout)
        mbarrier.wait(k_ready.index(c), phase)
        phase ^= 1
        for _ in range(GROUP):
            for _ in range(0, first):
                _skip(ring, used)
                used += 1
            edges = (first, free, free_end, end)
            for part in gl.static_range(3):
                for tile in range(edges[part], edges[part + 1]):
                    acc = _step(
                        k_tile, v_tile, ring, numbers, used, begin + tile * ROWS, first_query, own_keys, acc, low, high,
                        scale2, part != 1, PACKED, VALUES,
                    )  # fmt: skip
                    used += 1
            for _ in range(end, tiles):
                _skip(ring, used)
                used += 1

        # The tile of keys has been read for the last time: the result leaves through it.
        batch, kv_head, x, stop, token, _, _, _, _, _ = locate_keys(
            own_block(forgotten(nth), total), blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys,
            offset, left, right, CHUNKS, PACKED, KEYS * CONSUMERS, ROWS,
        )  # fmt: skip
        x += c * KEYS
        token += c * KEYS
        result = (acc if VALUES else acc * scale).to(k_tiles.dtype)
        store_result(
            result,
            k_tile,
            out,
            out_rows,
            batch,
            kv_head,
            token,
            stop - x,
            stride_gb,
            stride_gt,
            stride_gh,
            PACKED,
            False,
        )
        mbarrier.arrive(k_empty.index(c))


@gluon.jit(do_not_specialize=["n_queries", "n_keys", "n_blocks", "n_kv_heads", "offset", "total", "left", "right"])
def backward_keys_wide_kernel(
    q, d_out, k, v, lse2, delta, out, out_rows, blocks, documents, parameters,
    n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right, total, stride_gb, stride_gt, stride_gh, scale, scale2,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr, VALUES: gl.constexpr, SLOTS: gl.constexpr,
    D_SLOTS: gl.constexpr,
):  # fmt: skip
    CONSUMERS: gl.constexpr = 2
    KEYS: gl.constexpr = k.block_type.shape[2]
    ROWS: gl.constexpr = q.block_type.shape[2]
    D: gl.constexpr = k.block_type.shape[3]
    flat: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, D], q.dtype)
    k_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, KEYS, D], flat)
    v_tiles = k_tiles if VALUES else gl.allocate_shared_memory(q.dtype, [CONSUMERS, KEYS, D], flat)
    ring = make_ring(q.dtype, SLOTS, D_SLOTS, ROWS, D, CONSUMERS)
    lse_tiles = gl.allocate_shared_memory(lse2.dtype, [SLOTS, 1, ROWS], lse2.layout)
    delta_tiles = gl.allocate_shared_memory(lse2.dtype, [D_SLOTS, 1, ROWS], lse2.layout)
    keys = (k_tiles, v_tiles, barriers(CONSUMERS, 1), barriers(CONSUMERS, 1))
    numbers = (lse_tiles, delta_tiles)
    results = (out, out_rows, stride_gb, stride_gt, stride_gh, scale, scale2)
    where = (blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right, total)
    sources = (q, d_out, k, v, lse2, delta)
    gl.warp_specialize([
        (_compute, (keys, ring, numbers, results, where, 0, CHUNKS, PACKED, GROUP, VALUES)),
        (_compute, (keys, ring, numbers, results, where, 1, CHUNKS, PACKED, GROUP, VALUES)),
        (_load, (sources, keys, ring, numbers, where, CHUNKS, PACKED, GROUP, VALUES)),
    ], [4, 1], [240, 24])  # fmt: skip


def backward_keys_wide(inputs: Inputs, gradients: Gradients, where: Geometry, scale: float) -> tuple[Tensor, Tensor]:
    """dk and dv in k's dtype."""
    q, k, v, d_out = inputs.q, inputs.k, inputs.v, copyable(gradients.d_out)
    dk, dv = (torch.empty_like(k, memory_format=torch.contiguous_format) for _ in range(2))
    for values, out in ((True, dv), (False, dk)) if dk.numel() else ():
        key = (backward_keys_wide_kernel, values, alike(*inputs, d_out))
        launch = where.launches.kept(key, partial(_launch, inputs, dk, where, values))
        launch(
            q=q, d_out=d_out, k=k, v=v, lse2=gradients.lse2, delta=gradients.delta, out=out, out_rows=out,
            scale=scale, scale2=scale * LOG2_E,
        )  # fmt: skip
    return dk, dv


def _launch(inputs: Inputs, dk: Tensor, where: Geometry, values: bool) -> Launch:
    constants = backward_keys_wide_constants(where, inputs.q.shape[2] // dk.shape[2], dk.shape[3], values)
    rows = constants.pop("ROWS")
    grid, fixed = walk_arguments(inputs, where, "k", 2 * KEYS, programs_of(dk.device))
    fixed |= constants | strides("gb gt gh", dk)
    tiles = head_first_tiles(rows, "q", "d_out") | head_first_tiles(KEYS, "k", "v", "out")
    return Launch(backward_keys_wide_kernel, grid, fixed, tiles | rows_tiles(rows, "lse2", "delta"))


def backward_keys_wide_constants(where: Geometry, group: int, head_dim: int, values: bool) -> dict[str, Any]:
    """What the kernel is compiled for, and the number of query rows of a tile."""
    return {
        "CHUNKS": where.chunks,
        "PACKED": where.packed,
        "GROUP": group,
        "VALUES": values,
        "SLOTS": 2,
        "D_SLOTS": 2 if values else 1,
        "ROWS": 64,
    }
