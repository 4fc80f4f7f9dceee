"""Backward kernel for keys and values on Hopper: the interval's part of `kernels/attention/backward_keys.py`.

    s = log2(e) * scale * k q^T;  p = 2^(s - lse2);  dv = sum p dout
    dk = scale * sum ds q,  ds = p * (v dout^T - delta)

A program holds 64 keys for each of two warpgroups, of three at head dim 64, and one warp loads the queries of every head of the
group that see them, with their two numbers a row, into a ring. Keys stand down and queries across, so that p and ds enter
their products from registers as they stand; dk and dv (D / 2 registers a thread each) never leave them before the end. One
order of sums, no atomics: the same bits every time.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from ..geometry import Geometry
from ..launch import Gradients, Inputs
from ..repeated_launch import Launch, alike, strides
from ..tiles import LOG2_E
from .blocks import forgotten, locate_keys, own_block, own_query_tiles, query_bounds, store_rows
from .descriptors import copyable, head_first_tiles, programs_of, rows_tiles, walk_arguments
from .query_ring import add_queries, load_group, load_held, skip_queries
from .ring import barriers

KEYS = 64  # of a warpgroup


@gluon.jit
def _load(
    sources, keys, ring, where, CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    q, d_out, k, v, lse2, delta = sources
    k_tiles, v_tiles, k_ready, k_empty = keys
    q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty = ring
    blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right, total = where
    CONSUMERS: gl.constexpr = k_tiles.type.shape[0]
    KEYS: gl.constexpr = k.block_type.shape[2]
    ROWS: gl.constexpr = q.block_type.shape[2]
    loaded = 0
    phase = 0
    for nth in range(gl.program_id(0), total, gl.num_programs(0)):
        batch, kv_head, _, _, token, row, _, _, _begin, tiles = locate_keys(
            own_block(nth, total), blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, KEYS * CONSUMERS, ROWS,
        )  # fmt: skip
        load_held(k, v, batch, kv_head, token, phase, k_tiles, v_tiles, k_ready, k_empty, False)
        phase ^= 1
        loaded = load_group(
            q, d_out, lse2, delta, batch, kv_head, n_kv_heads, row, tiles, loaded, q_tiles, d_tiles, lse_tiles, delta_tiles,
            q_ready, q_empty, GROUP,
        )  # fmt: skip


@gluon.jit
def _compute(
    keys, ring, results, where, c, CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    k_tiles, v_tiles, k_ready, k_empty = keys
    q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty = ring
    dk_out, dv_out, dk_rows, dv_rows, stride_gb, stride_gt, stride_gh, scale, scale2 = results
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
        dk = gl.zeros([KEYS, D], gl.float32, o_layout)
        dv = gl.zeros([KEYS, D], gl.float32, o_layout)
        mbarrier.wait(k_ready.index(c), phase)
        phase ^= 1
        for _ in range(GROUP):
            for _ in range(0, first):
                skip_queries(used, q_ready, q_empty)
                used += 1
            edges = (first, free, free_end, end)
            for part in gl.static_range(3):
                for tile in range(edges[part], edges[part + 1]):
                    dk, dv = add_queries(
                        k_tile, v_tile, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty, used,
                        begin + tile * ROWS, first_query, own_keys, dk, dv, low, high, scale2,
                        "none" if part == 1 else "run", PACKED,
                    )  # fmt: skip
                    used += 1
            for _ in range(end, tiles):
                skip_queries(used, q_ready, q_empty)
                used += 1

        # The tiles of keys and values have been read for the last time: the results leave through them.
        batch, kv_head, x, stop, token, _, _, _, _, _ = locate_keys(
            own_block(forgotten(nth), total), blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys,
            offset, left, right, CHUNKS, PACKED, KEYS * CONSUMERS, ROWS,
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
    scale, scale2, CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr, SLOTS: gl.constexpr, CONSUMERS: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    KEYS: gl.constexpr = k.block_type.shape[2]
    ROWS: gl.constexpr = q.block_type.shape[2]
    D: gl.constexpr = k.block_type.shape[3]
    flat: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, D], q.dtype)
    k_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, KEYS, D], flat)
    v_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, KEYS, D], flat)
    q_tiles = gl.allocate_shared_memory(q.dtype, [SLOTS, ROWS, D], flat)
    d_tiles = gl.allocate_shared_memory(q.dtype, [SLOTS, ROWS, D], flat)
    lse_tiles = gl.allocate_shared_memory(lse2.dtype, [SLOTS, 1, ROWS], lse2.layout)
    delta_tiles = gl.allocate_shared_memory(lse2.dtype, [SLOTS, 1, ROWS], lse2.layout)
    k_ready = barriers(CONSUMERS, 1)
    k_empty = barriers(CONSUMERS, 1)
    q_ready = barriers(SLOTS, 1)
    q_empty = barriers(SLOTS, CONSUMERS)
    keys = (k_tiles, v_tiles, k_ready, k_empty)
    ring = (q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty)
    results = (dk_out, dv_out, dk_rows, dv_rows, stride_gb, stride_gt, stride_gh, scale, scale2)
    where = (blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right, total)
    sources = (q, d_out, k, v, lse2, delta)
    if CONSUMERS == 2:
        gl.warp_specialize([
            (_compute, (keys, ring, results, where, 0, CHUNKS, PACKED, GROUP)),
            (_compute, (keys, ring, results, where, 1, CHUNKS, PACKED, GROUP)),
            (_load, (sources, keys, ring, where, CHUNKS, PACKED, GROUP)),
        ], [4, 1], [REGISTERS, 24])  # fmt: skip
    else:
        gl.warp_specialize([
            (_compute, (keys, ring, results, where, 0, CHUNKS, PACKED, GROUP)),
            (_compute, (keys, ring, results, where, 1, CHUNKS, PACKED, GROUP)),
            (_compute, (keys, ring, results, where, 2, CHUNKS, PACKED, GROUP)),
            (_load, (sources, keys, ring, where, CHUNKS, PACKED, GROUP)),
        ], [4, 4, 1], [REGISTERS, REGISTERS, 24])  # fmt: skip


def backward_keys(inputs: Inputs, gradients: Gradients, where: Geometry, scale: float) -> tuple[Tensor, Tensor]:
    """dk and dv in k's dtype."""
    q, k, v, d_out = inputs.q, inputs.k, inputs.v, copyable(gradients.d_out)
    dk, dv = (torch.empty_like(k, memory_format=torch.contiguous_format) for _ in range(2))
    if dk.numel():
        key = (backward_keys_kernel, alike(*inputs, d_out))
        launch = where.launches.kept(key, lambda: _launch(inputs, dk, where))
        launch(
            q=q, d_out=d_out, k=k, v=v, lse2=gradients.lse2, delta=gradients.delta, dk_out=dk, dv_out=dv, dk_rows=dk, dv_rows=dv,
            scale=scale, scale2=scale * LOG2_E,
        )  # fmt: skip
    return dk, dv


def _launch(inputs: Inputs, dk: Tensor, where: Geometry) -> Launch:
    constants = backward_keys_constants(where, inputs.q.shape[2] // dk.shape[2], dk.shape[3])
    rows, keys = constants.pop("ROWS"), KEYS * constants["CONSUMERS"]
    grid, fixed = walk_arguments(inputs, where, "k", keys, programs_of(dk.device))
    fixed |= constants | strides("gb gt gh", dk)
    tiles = head_first_tiles(rows, "q", "d_out") | head_first_tiles(KEYS, "k", "v", "dk_out", "dv_out")
    return Launch(backward_keys_kernel, grid, fixed, tiles | rows_tiles(rows, "lse2", "delta"))


def backward_keys_constants(where: Geometry, group: int, head_dim: int) -> dict[str, Any]:
    """What the kernel is compiled for, and the number of query rows of a tile."""
    consumers = 3 if head_dim == 64 else 2
    return {
        "CHUNKS": where.chunks,
        "PACKED": where.packed,
        "GROUP": group,
        "SLOTS": 3,
        "CONSUMERS": consumers,
        "REGISTERS": 160 if consumers == 3 else 240,
        "ROWS": 64,
    }
