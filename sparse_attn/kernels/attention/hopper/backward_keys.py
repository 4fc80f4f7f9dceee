"""Backward kernel for keys and values on Hopper: the interval's part of `kernels/attention/backward_keys.py`.

    s = log2(e) * scale * k q^T;  p = 2^(s - lse2);  dv = sum p dout
    dk = scale * sum ds q,  ds = p * (v dout^T - delta)

A program holds 128 keys, 64 to a warpgroup, and one warp loads the queries of every head of the group that see them, with
their two numbers a row, into a ring. Keys stand down and queries across, so that p and ds enter their products from
registers as they stand; dk and dv (D / 2 registers a thread each) never leave them before the end. One order of sums, no
atomics: the same bits every time.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from ..geometry import Geometry
from ..launch import Gradients, Inputs
from ..tiles import LOG2_E
from .blocks import forgotten, locate_keys, query_bounds, store_rows
from .descriptors import copyable, head_first, programs_of, rows_of
from .query_ring import add_queries, load_queries

KEYS = 64  # of a warpgroup


@gluon.jit
def _load(
    q, d_out, k, v, lse2, delta, blocks, documents, parameters, k_tiles, v_tiles, q_tiles, d_tiles, lse_tiles, delta_tiles,
    k_ready, k_empty, q_ready, q_empty, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right, total,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    CONSUMERS: gl.constexpr = k_tiles.type.shape[0]
    KEYS: gl.constexpr = k.block_type.shape[2]
    ROWS: gl.constexpr = q.block_type.shape[2]
    loaded = 0
    phase = 0
    for nth in range(gl.program_id(0), total, gl.num_programs(0)):
        batch, kv_head, _, _, token, row, _, _, _begin, tiles = locate_keys(
            nth, blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, KEYS * CONSUMERS, ROWS,
        )  # fmt: skip
        for c in gl.static_range(CONSUMERS):
            ready = k_ready.index(c)
            mbarrier.wait(k_empty.index(c), phase ^ 1)
            mbarrier.expect(ready, k.block_type.nbytes + v.block_type.nbytes)
            tma.async_copy_global_to_shared(k, [batch, kv_head, token + KEYS * c, 0], ready, k_tiles.index(c))
            tma.async_copy_global_to_shared(v, [batch, kv_head, token + KEYS * c, 0], ready, v_tiles.index(c))
        phase ^= 1
        for head in range(kv_head * GROUP, kv_head * GROUP + GROUP):
            line = batch * n_kv_heads * GROUP + head
            for tile in range(tiles):
                load_queries(
                    q, d_out, lse2, delta, batch, head, line, row + tile * ROWS, loaded, q_tiles, d_tiles, lse_tiles,
                    delta_tiles, q_ready, q_empty,
                )  # fmt: skip
                loaded += 1


@gluon.jit
def _compute(
    k_tiles, v_tiles, q_tiles, d_tiles, lse_tiles, delta_tiles, k_ready, k_empty, q_ready, q_empty,
    dk_out, dv_out, dk_rows, dv_rows, blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset,
    left, right, total, stride_gb, stride_gt, stride_gh, scale, scale2, c,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    CONSUMERS: gl.constexpr = k_tiles.type.shape[0]
    KEYS: gl.constexpr = k_tiles.type.shape[1]
    D: gl.constexpr = k_tiles.type.shape[2]
    SLOTS: gl.constexpr = q_tiles.type.shape[0]
    ROWS: gl.constexpr = q_tiles.type.shape[1]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    k_tile = k_tiles.index(c)
    v_tile = v_tiles.index(c)
    used = 0
    phase = 0
    for nth in range(gl.program_id(0), total, gl.num_programs(0)):
        _, _, x, stop, _, _, own_keys, first_query, begin, tiles = locate_keys(
            nth, blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, KEYS * CONSUMERS, ROWS,
        )  # fmt: skip
        x += c * KEYS
        j = x + gl.arange(0, KEYS, gl.SliceLayout(1, s_layout))
        low, high = query_bounds(j, first_query, own_keys, left, right, parameters, CHUNKS)

        # Of the program's tiles, those that some of this warpgroup's keys are seen from, and among them those that all are.
        last = gl.minimum(x + KEYS, stop) - 1
        own_begin, free_high = query_bounds(x, first_query, own_keys, left, right, parameters, CHUNKS)
        free_low, own_end = query_bounds(last, first_query, own_keys, left, right, parameters, CHUNKS)
        end = gl.minimum((own_end - begin + ROWS - 1) // ROWS, tiles)
        end = gl.where(last < x, 0, gl.maximum(end, 0))
        first = gl.minimum(gl.maximum(own_begin - begin, 0) // ROWS, end)
        free = gl.minimum(gl.maximum((free_low - begin + ROWS - 1) // ROWS, first), end)
        free_end = gl.minimum(gl.maximum((free_high - begin) // ROWS, free), end)

        dk = gl.zeros([KEYS, D], gl.float32, o_layout)
        dv = gl.zeros([KEYS, D], gl.float32, o_layout)
        mbarrier.wait(k_ready.index(c), phase)
        phase ^= 1
        for _ in range(GROUP):
            for _ in range(0, first):
                mbarrier.wait(q_ready.index(used % SLOTS), used // SLOTS & 1)
                mbarrier.arrive(q_empty.index(used % SLOTS))
                used += 1
            for tile in range(first, free):
                dk, dv = add_queries(
                    k_tile, v_tile, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty, used, begin + tile * ROWS,
                    first_query, own_keys, dk, dv, low, high, scale2, "run", PACKED,
                )  # fmt: skip
                used += 1
            for tile in range(free, free_end):
                dk, dv = add_queries(
                    k_tile, v_tile, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty, used, begin + tile * ROWS,
                    first_query, own_keys, dk, dv, low, high, scale2, "none", PACKED,
                )  # fmt: skip
                used += 1
            for tile in range(free_end, end):
                dk, dv = add_queries(
                    k_tile, v_tile, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty, used, begin + tile * ROWS,
                    first_query, own_keys, dk, dv, low, high, scale2, "run", PACKED,
                )  # fmt: skip
                used += 1
            for _ in range(end, tiles):
                mbarrier.wait(q_ready.index(used % SLOTS), used // SLOTS & 1)
                mbarrier.arrive(q_empty.index(used % SLOTS))
                used += 1

        # The tiles of keys and values have been read for the last time: the results leave through them.
        batch, kv_head, x, stop, token, _, _, _, _, _ = locate_keys(
            forgotten(nth), blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, KEYS * CONSUMERS, ROWS,
        )  # fmt: skip
        x += c * KEYS
        token += c * KEYS
        dk_done = (dk * scale).to(k_tiles.dtype)
        dv_done = dv.to(k_tiles.dtype)
        if PACKED and stop - x < KEYS:
            store_rows(dk_rows, batch, kv_head, token, stop - x, dk_done, stride_gb, stride_gt, stride_gh)
            store_rows(dv_rows, batch, kv_head, token, stop - x, dv_done, stride_gb, stride_gt, stride_gh)
        else:
            k_tile.store(dk_done)
            v_tile.store(dv_done)
            fence_async_shared()
            tma.async_copy_shared_to_global(dk_out, [batch, kv_head, token, 0], k_tile.reshape([1, 1, KEYS, D]))
            tma.async_copy_shared_to_global(dv_out, [batch, kv_head, token, 0], v_tile.reshape([1, 1, KEYS, D]))
            tma.store_wait(0)
        mbarrier.arrive(k_empty.index(c))


@gluon.jit(
    do_not_specialize=["n_queries", "n_keys", "n_blocks", "n_kv_heads", "offset", "total", "left", "right"],
)
def backward_keys_kernel(
    q, d_out, k, v, lse2, delta, dk_out, dv_out, dk_rows, dv_rows, blocks, documents, parameters,
    n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right, total, stride_gb, stride_gt, stride_gh,
    scale, scale2, CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr, SLOTS: gl.constexpr,
    REGISTERS: gl.constexpr, LOADER: gl.constexpr,
):  # fmt: skip
    CONSUMERS: gl.constexpr = 2
    KEYS: gl.constexpr = k.block_type.shape[2]
    ROWS: gl.constexpr = q.block_type.shape[2]
    D: gl.constexpr = k.block_type.shape[3]
    flat: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, D], q.dtype)
    one: gl.constexpr = mbarrier.MBarrierLayout()
    k_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, KEYS, D], flat)
    v_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, KEYS, D], flat)
    q_tiles = gl.allocate_shared_memory(q.dtype, [SLOTS, ROWS, D], flat)
    d_tiles = gl.allocate_shared_memory(q.dtype, [SLOTS, ROWS, D], flat)
    lse_tiles = gl.allocate_shared_memory(lse2.dtype, [SLOTS, 1, ROWS], lse2.layout)
    delta_tiles = gl.allocate_shared_memory(lse2.dtype, [SLOTS, 1, ROWS], lse2.layout)
    k_ready = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], one)
    k_empty = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], one)
    q_ready = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], one)
    q_empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], one)
    for c in gl.static_range(CONSUMERS):
        mbarrier.init(k_ready.index(c), count=1)
        mbarrier.init(k_empty.index(c), count=1)
    for s in gl.static_range(SLOTS):
        mbarrier.init(q_ready.index(s), count=1)
        mbarrier.init(q_empty.index(s), count=CONSUMERS)
    gl.warp_specialize([
        (_compute, (
            k_tiles, v_tiles, q_tiles, d_tiles, lse_tiles, delta_tiles, k_ready, k_empty, q_ready, q_empty,
            dk_out, dv_out, dk_rows, dv_rows, blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys,
            offset, left, right, total, stride_gb, stride_gt, stride_gh, scale, scale2, 0, CHUNKS, PACKED, GROUP,
        )),
        (_compute, (
            k_tiles, v_tiles, q_tiles, d_tiles, lse_tiles, delta_tiles, k_ready, k_empty, q_ready, q_empty,
            dk_out, dv_out, dk_rows, dv_rows, blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys,
            offset, left, right, total, stride_gb, stride_gt, stride_gh, scale, scale2, 1, CHUNKS, PACKED, GROUP,
        )),
        (_load, (
            q, d_out, k, v, lse2, delta, blocks, documents, parameters, k_tiles, v_tiles, q_tiles, d_tiles, lse_tiles,
            delta_tiles, k_ready, k_empty, q_ready, q_empty, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right,
            total, CHUNKS, PACKED, GROUP,
        )),
    ], [4, 1], [REGISTERS, LOADER])  # fmt: skip


def backward_keys(inputs: Inputs, gradients: Gradients, where: Geometry, scale: float) -> tuple[Tensor, Tensor]:
    """dk and dv in k's dtype."""
    q, k, v, d_out = inputs.q, inputs.k, inputs.v, copyable(gradients.d_out)
    dk, dv = (torch.empty_like(k, memory_format=torch.contiguous_format) for _ in range(2))
    assert where.main is not None
    batch, n_queries, n_heads, head_dim = q.shape
    n_keys, n_kv_heads = k.shape[1:3]
    n_blocks, table = where.blocks(where.main, 2 * KEYS, "k", q.device)
    total = n_blocks * n_kv_heads * batch
    if total == 0:
        return dk, dv
    constants = backward_keys_constants(where, n_heads // n_kv_heads, head_dim)
    rows = constants.pop("ROWS")
    backward_keys_kernel[(min(total, programs_of(q.device)),)](
        head_first(q, rows), head_first(d_out, rows), head_first(k, KEYS), head_first(v, KEYS),
        rows_of(gradients.lse2, rows), rows_of(gradients.delta, rows), head_first(dk, KEYS), head_first(dv, KEYS), dk, dv,
        table, where.document_table(q.device), where.numbers(q.device),
        n_blocks, n_kv_heads, n_queries, n_keys, n_keys - n_queries, where.left, where.right, total,
        dk.stride(0), dk.stride(1), dk.stride(2), scale, scale * LOG2_E, **constants, num_warps=4,
    )  # fmt: skip
    return dk, dv


def backward_keys_constants(where: Geometry, group: int, head_dim: int) -> dict[str, Any]:
    """What the kernel is compiled for, and the number of query rows of a tile."""
    return {
        "CHUNKS": where.chunks,
        "PACKED": where.packed,
        "GROUP": group,
        "SLOTS": 3,
        "ROWS": 64,
        "REGISTERS": 240,
        "LOADER": 24,
    }
