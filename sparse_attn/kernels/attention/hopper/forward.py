"""Forward kernel for Hopper: the interval's part of `kernels/attention/forward.py`, with one warp that only loads.

The mathematics is that of the portable kernel. A program holds two warpgroups of 64 query rows each, and one warp that
keeps the copy engine busy:

    loader        K(0) V(0) K(1) V(1) ...        into a ring of slots; a slot's K and V have barriers of their own
    warpgroups    s(i+1) = q k(i+1)^T  is issued, then  acc += p(i) v(i);  while the second product runs, the softmax of
                  s(i+1) is computed; then acc is corrected and p(i+1) narrowed, in registers

Tiles are walked from the last to the first: tiles that the right edge of the interval cuts (masked), tiles that all rows
see, tiles that its left edge cuts (masked). Programs are persistent: each takes every n-th block, and the loader runs
ahead into the next block while the last one is divided, narrowed and stored through a shared tile of its own.
Registers: 64 x 128 logits and 64 x D sums in float32 are 64 + D / 2 a thread, the narrowed weights 32 more.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..geometry import Geometry
from ..launch import Inputs
from ..tiles import LOG2_E
from .blocks import clean, interval_bounds, locate_queries, narrowed, store_rows
from .descriptors import head_first, programs_of

ROWS = 64  # of a warpgroup
KEYS = 128  # of a tile


@gluon.jit
def _load(
    q, k, v, blocks, documents, parameters, q_tiles, k_tiles, v_tiles, q_ready, q_empty, k_ready, k_empty, v_ready, v_empty,
    n_blocks, n_heads, n_queries, n_keys, offset, left, right, total,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = q.block_type.shape[2]
    KEYS: gl.constexpr = k.block_type.shape[2]
    SLOTS: gl.constexpr = k_tiles.type.shape[0]
    CONSUMERS: gl.constexpr = q_tiles.type.shape[0]
    loaded = 0
    phase = 0
    for nth in range(gl.program_id(0), total, gl.num_programs(0)):
        batch, head, _, _, row, k_start, _, begin, tiles, _, _ = locate_queries(
            nth, blocks, documents, parameters, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, ROWS * CONSUMERS, KEYS,
        )  # fmt: skip
        for c in gl.static_range(CONSUMERS):
            mbarrier.wait(q_empty.index(c), phase ^ 1)
            mbarrier.expect(q_ready.index(c), q.block_type.nbytes)
            tma.async_copy_global_to_shared(q, [batch, head, row + ROWS * c, 0], q_ready.index(c), q_tiles.index(c))
        phase ^= 1
        kv_head = head // GROUP
        for tile in range(tiles):
            at = k_start + begin + (tiles - 1 - tile) * KEYS
            slot = loaded % SLOTS
            emptied = (loaded // SLOTS & 1) ^ 1
            mbarrier.wait(k_empty.index(slot), emptied)
            mbarrier.expect(k_ready.index(slot), k.block_type.nbytes)
            tma.async_copy_global_to_shared(k, [batch, kv_head, at, 0], k_ready.index(slot), k_tiles.index(slot))
            mbarrier.wait(v_empty.index(slot), emptied)
            mbarrier.expect(v_ready.index(slot), v.block_type.nbytes)
            tma.async_copy_global_to_shared(v, [batch, kv_head, at, 0], v_ready.index(slot), v_tiles.index(slot))
            loaded += 1


@gluon.jit
def _mask(logits, start, low, high):
    """Logits of keys from `start` on, -inf outside each row's low .. high."""
    KEYS: gl.constexpr = logits.shape[1]
    j = (start + gl.arange(0, KEYS, gl.SliceLayout(0, logits.type.layout)))[None, :]
    return gl.where((low[:, None] <= j) & (j < high[:, None]), logits, float("-inf"))


@gluon.jit
def _weights(logits, top, total, scale, MASKED: gl.constexpr):
    """One step of the running softmax: weights, their correction, and the new maximum and sum."""
    if MASKED:
        new_top = gl.maximum(top, gl.max(logits, 1) * scale)
        base = gl.where(new_top == float("-inf"), 0.0, new_top)  # -inf minus -inf would be NaN
    else:
        new_top = gl.maximum(top, gl.max(logits, 1) * scale)
        base = new_top
    weights = gl.exp2(logits * scale - base[:, None])
    correction = gl.exp2(top - base)
    return weights, correction, new_top, total * correction + gl.sum(weights, 1)


@gluon.jit
def _step(
    q, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, turn, step, c, used, start, own_keys,
    p, acc, top, total, low, high, scale, MASKED: gl.constexpr, PACKED: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    """Tile number `used` of the ring joins the softmax, and the tile before it the output."""
    SLOTS: gl.constexpr = k_tiles.type.shape[0]
    KEYS: gl.constexpr = k_tiles.type.shape[1]
    ROWS: gl.constexpr = acc.shape[0]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    p_layout: gl.constexpr = p.type.layout
    ELEMENT: gl.constexpr = v_tiles.dtype
    slot = used % SLOTS
    before = (used - 1) % SLOTS
    mbarrier.wait(k_ready.index(slot), used // SLOTS & 1)
    CONSUMERS: gl.constexpr = turn.type.shape[0]
    if TURNS:
        mbarrier.wait(turn.index(c), (step & 1) ^ (c == 0))
    blank = gl.zeros([ROWS, KEYS], gl.float32, s_layout)
    logits = warpgroup_mma(q, k_tiles.index(slot).permute((1, 0)), blank, use_acc=False, is_async=True)
    mbarrier.wait(v_ready.index(before), (used - 1) // SLOTS & 1)
    if PACKED and start + 2 * KEYS > own_keys:
        clean(v_tiles.index(before), start + KEYS, 0, own_keys)
    acc = warpgroup_mma(p, v_tiles.index(before), acc, is_async=True)
    if TURNS:
        mbarrier.arrive(turn.index((c + 1) % CONSUMERS))
    logits = warpgroup_mma_wait(1, deps=(logits,))
    mbarrier.arrive(k_empty.index(slot))
    if MASKED:
        logits = _mask(logits, start, low, high)
    weights, correction, top, total = _weights(logits, top, total, scale, MASKED)
    following = narrowed(weights, p_layout, ELEMENT)
    # A second look at a barrier that has been passed ends a block of instructions: without it the compiler waits for the
    # product before it takes the powers.
    mbarrier.wait(v_ready.index(before), (used - 1) // SLOTS & 1)
    acc, p, following = warpgroup_mma_wait(0, deps=(acc, p, following))
    mbarrier.arrive(v_empty.index(before))
    acc = acc * gl.convert_layout(correction, gl.SliceLayout(1, acc.type.layout))[:, None]
    return following, acc, top, total


@gluon.jit
def _attend(
    q_tiles, k_tiles, v_tiles, out_tiles, q_ready, q_empty, k_ready, k_empty, v_ready, v_empty, turn,
    out, out_rows, lse, blocks, documents, parameters, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
    stride_ob, stride_ot, stride_oh, scale, total_blocks, c,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    SLOTS: gl.constexpr = k_tiles.type.shape[0]
    KEYS: gl.constexpr = k_tiles.type.shape[1]
    CONSUMERS: gl.constexpr = q_tiles.type.shape[0]
    ROWS: gl.constexpr = q_tiles.type.shape[1]
    D: gl.constexpr = q_tiles.type.shape[2]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    ELEMENT: gl.constexpr = v_tiles.dtype
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    out_tile = out_tiles.index(c)
    used = 0
    step = 0
    phase = 0
    for nth in range(gl.program_id(0), total_blocks, gl.num_programs(0)):
        batch, head, x, stop, row, _k_start, own_keys, begin, tiles, masked_left, free_stop = locate_queries(
            nth, blocks, documents, parameters, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, ROWS * CONSUMERS, KEYS,
        )  # fmt: skip
        x += c * ROWS
        row += c * ROWS
        low, high = interval_bounds(
            x + gl.arange(0, ROWS, row_layout), own_keys, left, right, parameters, CHUNKS
        )  # fmt: skip

        # The last tile alone: its product has none to hide behind.
        mbarrier.wait(q_ready.index(c), phase)
        q_tile = q_tiles.index(c)
        slot = used % SLOTS
        mbarrier.wait(k_ready.index(slot), used // SLOTS & 1)
        blank = gl.zeros([ROWS, KEYS], gl.float32, s_layout)
        logits = warpgroup_mma(q_tile, k_tiles.index(slot).permute((1, 0)), blank, use_acc=False, is_async=True)
        logits = warpgroup_mma_wait(0, deps=(logits,))
        mbarrier.arrive(k_empty.index(slot))
        start = begin + (tiles - 1) * KEYS
        logits = _mask(logits, start, low, high)
        top = gl.full([ROWS], float("-inf"), gl.float32, row_layout)
        weights, _, top, total = _weights(logits, top, gl.zeros([ROWS], gl.float32, row_layout), scale, True)
        p = narrowed(weights, p_layout, ELEMENT)
        acc = gl.zeros([ROWS, D], gl.float32, o_layout)
        used += 1

        for tile in range(tiles - 2, gl.minimum(free_stop, tiles - 1) - 1, -1):
            p, acc, top, total = _step(
                q_tile, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, turn, step, c, used,
                begin + tile * KEYS, own_keys, p, acc, top, total, low, high, scale, True, PACKED, TURNS,
            )  # fmt: skip
            used += 1
            step += 1
        for tile in range(gl.minimum(free_stop, tiles - 1) - 1, masked_left - 1, -1):
            p, acc, top, total = _step(
                q_tile, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, turn, step, c, used,
                begin + tile * KEYS, own_keys, p, acc, top, total, low, high, scale, False, PACKED, TURNS,
            )  # fmt: skip
            used += 1
            step += 1
        for tile in range(gl.minimum(masked_left, tiles - 1) - 1, -1, -1):
            p, acc, top, total = _step(
                q_tile, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, turn, step, c, used,
                begin + tile * KEYS, own_keys, p, acc, top, total, low, high, scale, True, PACKED, TURNS,
            )  # fmt: skip
            used += 1
            step += 1
        mbarrier.arrive(q_empty.index(c))
        phase ^= 1

        # The first tile's values, and the result; a query without keys gets 0 and -inf.
        before = (used - 1) % SLOTS
        mbarrier.wait(v_ready.index(before), (used - 1) // SLOTS & 1)
        if PACKED and begin + KEYS > own_keys:
            clean(v_tiles.index(before), begin, 0, own_keys)
        acc = warpgroup_mma(p, v_tiles.index(before), acc, is_async=True)
        inside = x + gl.arange(0, ROWS, row_layout) < stop
        rows = row + gl.arange(0, ROWS, row_layout)
        share = 1.0 / gl.where(total == 0.0, 1.0, total)
        share = gl.convert_layout(share, gl.SliceLayout(1, o_layout))
        lse_at = lse + (batch.to(gl.int64) * n_queries + rows) * n_heads + head
        gl.store(lse_at, (top + gl.log2(gl.maximum(total, 1.0))) * 0.6931471805599453, mask=inside)
        acc, p = warpgroup_mma_wait(0, deps=(acc, p))
        mbarrier.arrive(v_empty.index(before))
        result = (acc * share[:, None]).to(out_tiles.dtype)
        if PACKED and stop - x < ROWS:  # the next document's rows follow: its warpgroup stores them
            store_rows(out_rows, batch, head, row, stop - x, result, stride_ob, stride_ot, stride_oh)
        else:
            tma.store_wait(0)
            gl.thread_barrier()
            out_tile.store(result)
            fence_async_shared()
            tma.async_copy_shared_to_global(out, [batch, head, row, 0], out_tile.reshape([1, 1, ROWS, D]))
    tma.store_wait(0)


@gluon.jit(
    do_not_specialize=["n_queries", "n_keys", "n_blocks", "n_heads", "offset", "total", "left", "right"],
    do_not_specialize_on_alignment=["n_queries", "n_keys", "n_blocks", "n_heads", "offset", "total", "left", "right"],
)
def forward_kernel(
    q, k, v, out, out_rows, lse, blocks, documents, parameters,
    n_blocks, n_heads, n_queries, n_keys, offset, left, right, total, stride_ob, stride_ot, stride_oh, scale,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr, SLOTS: gl.constexpr,
    TURNS: gl.constexpr,
):  # fmt: skip
    CONSUMERS: gl.constexpr = 2
    ROWS: gl.constexpr = q.block_type.shape[2]
    KEYS: gl.constexpr = k.block_type.shape[2]
    D: gl.constexpr = k.block_type.shape[3]
    flat: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, D], q.dtype)
    q_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, ROWS, D], flat)
    k_tiles = gl.allocate_shared_memory(q.dtype, [SLOTS, KEYS, D], flat)
    v_tiles = gl.allocate_shared_memory(q.dtype, [SLOTS, KEYS, D], flat)
    out_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, ROWS, D], flat)
    one: gl.constexpr = mbarrier.MBarrierLayout()
    q_ready = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], one)
    q_empty = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], one)
    k_ready = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], one)
    k_empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], one)
    v_ready = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], one)
    v_empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], one)
    turn = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], one)
    for c in gl.static_range(CONSUMERS):
        mbarrier.init(turn.index(c), count=1)
        mbarrier.init(q_ready.index(c), count=1)
        mbarrier.init(q_empty.index(c), count=1)
    for s in gl.static_range(SLOTS):
        mbarrier.init(k_ready.index(s), count=1)
        mbarrier.init(k_empty.index(s), count=CONSUMERS)
        mbarrier.init(v_ready.index(s), count=1)
        mbarrier.init(v_empty.index(s), count=CONSUMERS)
    gl.warp_specialize([
        (_attend, (
            q_tiles, k_tiles, v_tiles, out_tiles, q_ready, q_empty, k_ready, k_empty, v_ready, v_empty, turn,
            out, out_rows, lse, blocks, documents, parameters, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
            stride_ob, stride_ot, stride_oh, scale, total, 0, CHUNKS, PACKED, TURNS,
        )),
        (_attend, (
            q_tiles, k_tiles, v_tiles, out_tiles, q_ready, q_empty, k_ready, k_empty, v_ready, v_empty, turn,
            out, out_rows, lse, blocks, documents, parameters, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
            stride_ob, stride_ot, stride_oh, scale, total, 1, CHUNKS, PACKED, TURNS,
        )),
        (_load, (
            q, k, v, blocks, documents, parameters, q_tiles, k_tiles, v_tiles, q_ready, q_empty, k_ready, k_empty, v_ready, v_empty,
            n_blocks, n_heads, n_queries, n_keys, offset, left, right, total, CHUNKS, PACKED, GROUP,
        )),
    ], [4, 1], [240, 24])  # fmt: skip


def forward(inputs: Inputs, where: Geometry, scale: float) -> tuple[Tensor, Tensor]:
    """Output in q's dtype and LSE ``[B, T, Hq]`` in float32."""
    q, k, v = inputs.q, inputs.k, inputs.v
    batch, n_queries, n_heads, head_dim = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((batch, n_queries, n_heads), dtype=torch.float32, device=q.device)
    assert where.main is not None
    constants = forward_constants(where, n_heads // k.shape[2], head_dim)
    n_blocks, table = where.blocks(where.main, 2 * ROWS, "q", q.device)
    total = n_blocks * n_heads * batch
    if total == 0:
        return out, lse
    forward_kernel[(min(total, programs_of(q.device)),)](
        head_first(q, ROWS), head_first(k, KEYS), head_first(v, KEYS), head_first(out, ROWS), out, lse,
        table, where.document_table(q.device), where.numbers(q.device),
        n_blocks, n_heads, n_queries, k.shape[1], k.shape[1] - n_queries, where.left, where.right, total,
        out.stride(0), out.stride(1), out.stride(2), scale * LOG2_E,
        **constants, num_warps=4,
    )  # fmt: skip
    return out, lse


def forward_constants(where: Geometry, group: int, head_dim: int) -> dict[str, Any]:
    """What the kernel is compiled for. Taking turns pays where products take longer than powers."""
    return {
        "CHUNKS": where.chunks, "PACKED": where.packed, "GROUP": group,
        "SLOTS": 2 if head_dim == 128 else 4, "TURNS": head_dim == 128,
    }  # fmt: skip
