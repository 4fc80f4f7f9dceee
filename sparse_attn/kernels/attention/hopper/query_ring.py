"""The ring of query tiles that Hopper's kernels of dk and dv walk: how a slot is filled, what keys take from it, and how they came.

A slot holds q, d_out, and the two numbers a row, lse2 and delta. Keys stand down and queries across, so that p and ds enter
their products from registers as they stand.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .blocks import clean, narrowed
from .ring import odd_turn


@gluon.jit
def load_queries(
    q, d_out, lse2, delta, batch, head, line, at, loaded, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty,
):  # fmt: skip
    """Copy a tile of queries, from row `at` of a head on, into slot number `loaded` of the ring; `line` is the head's
    among those of all batches."""
    SLOTS: gl.constexpr = q_tiles.type.shape[0]
    BYTES: gl.constexpr = 2 * q.block_type.nbytes + 2 * lse2.block_type.nbytes
    slot = loaded % SLOTS
    ready = q_ready.index(slot)
    mbarrier.wait(q_empty.index(slot), odd_turn(loaded, SLOTS) ^ 1)
    mbarrier.expect(ready, BYTES)
    tma.async_copy_global_to_shared(q, [batch, head, at, 0], ready, q_tiles.index(slot))
    tma.async_copy_global_to_shared(lse2, [line, at], ready, lse_tiles.index(slot))
    tma.async_copy_global_to_shared(d_out, [batch, head, at, 0], ready, d_tiles.index(slot))
    tma.async_copy_global_to_shared(delta, [line, at], ready, delta_tiles.index(slot))


@gluon.jit
def load_group(
    q, d_out, lse2, delta, batch, kv_head, n_kv_heads, row, tiles, loaded, q_tiles, d_tiles, lse_tiles, delta_tiles,
    q_ready, q_empty, GROUP: gl.constexpr,
):  # fmt: skip
    """Copy so many tiles of queries, from `row` on, of each query head of a KV head; how many have been loaded then."""
    ROWS: gl.constexpr = q_tiles.type.shape[1]
    for head in range(kv_head * GROUP, kv_head * GROUP + GROUP):
        line = batch * n_kv_heads * GROUP + head
        for tile in range(tiles):
            load_queries(
                q, d_out, lse2, delta, batch, head, line, row + tile * ROWS, loaded, q_tiles, d_tiles, lse_tiles, delta_tiles,
                q_ready, q_empty,
            )  # fmt: skip
            loaded += 1
    return loaded


@gluon.jit
def load_held(
    k, v, batch, kv_head, at, phase, k_tiles, v_tiles, k_ready, k_empty, ALONE: gl.constexpr,
):  # fmt: skip
    """Copy the tiles of keys that stay while queries walk past, from row `at` on; and of values, unless keys are ALONE."""
    KEYS: gl.constexpr = k.block_type.shape[2]
    TILES: gl.constexpr = k_tiles.type.shape[0]
    for t in gl.static_range(TILES):
        ready = k_ready.index(t)
        mbarrier.wait(k_empty.index(t), phase ^ 1)
        mbarrier.expect(ready, k.block_type.nbytes * (1 if ALONE else 2))
        tma.async_copy_global_to_shared(k, [batch, kv_head, at + KEYS * t, 0], ready, k_tiles.index(t))
        if not ALONE:
            tma.async_copy_global_to_shared(v, [batch, kv_head, at + KEYS * t, 0], ready, v_tiles.index(t))


@gluon.jit
def skip_queries(used, q_ready, q_empty):
    """Let slot number `used` of the ring pass, whose queries see none of the warpgroup's keys."""
    SLOTS: gl.constexpr = q_ready.type.shape[0]
    mbarrier.wait(q_ready.index(used % SLOTS), odd_turn(used, SLOTS))
    mbarrier.arrive(q_empty.index(used % SLOTS))


@gluon.jit
def add_queries(
    k, v, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty, used, start, first_query, own_keys,
    dk, dv, low, high, scale2,
    KIND: gl.constexpr, PACKED: gl.constexpr,
):  # fmt: skip
    """Add to dk and dv of a tile of keys the share of the queries in slot number `used` of the ring.

    KIND says by which a key is seen: "none": by all; "run": by those of low .. high; "from": by those from `low` on;
    "beside": by those outside low .. high; "edge": by those of its document outside low .. high. Tiles of "run" and "edge"
    alone may leave their document.
    """
    EDGE: gl.constexpr = PACKED and (KIND == "run" or KIND == "edge")
    SLOTS: gl.constexpr = q_tiles.type.shape[0]
    ROWS: gl.constexpr = q_tiles.type.shape[1]
    KEYS: gl.constexpr = dk.shape[0]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, dk.type.layout, 2)
    ELEMENT: gl.constexpr = q_tiles.dtype
    slot = used % SLOTS
    q_tile = q_tiles.index(slot)
    d_tile = d_tiles.index(slot)
    mbarrier.wait(q_ready.index(slot), odd_turn(used, SLOTS))
    if EDGE and (start < first_query) | (start + ROWS > own_keys):
        clean(q_tile, start, first_query, own_keys)
        clean(d_tile, start, first_query, own_keys)
    blank = gl.zeros([KEYS, ROWS], gl.float32, s_layout)
    logits = warpgroup_mma(k, q_tile.permute((1, 0)), blank, use_acc=False, is_async=True)
    d_weights = blank - delta_tiles.index(slot).load(s_layout)  # the product begins there, and delta needs no registers
    d_weights = warpgroup_mma(v, d_tile.permute((1, 0)), d_weights, is_async=True)
    lse_row = lse_tiles.index(slot).load(s_layout)  # early: read behind the wait, at head dim 64 it costs 12%
    logits = warpgroup_mma_wait(1, deps=(logits,))
    if KIND != "none":
        row = gl.arange(0, ROWS, gl.SliceLayout(0, s_layout))[None, :]
        if KIND == "run":
            keep = (low[:, None] <= start + row) & (start + row < high[:, None])
        elif KIND == "from":  # a limit counted from the tile on: fewer sums than with positions
            keep = row >= (low - start)[:, None]
        else:
            keep = (row < (low - start)[:, None]) | (row >= (high - start)[:, None])
            if EDGE:
                keep = keep & (first_query - start <= row) & (row < own_keys - start)
        weights = gl.exp2(gl.where(keep, logits * scale2 - lse_row, float("-inf")))
    else:
        weights = gl.exp2(logits * scale2 - lse_row)
    p = narrowed(weights, p_layout, ELEMENT)
    dv = warpgroup_mma(p, d_tile, dv, is_async=True)
    d_weights = warpgroup_mma_wait(1, deps=(d_weights,))
    d_logits = weights * d_weights
    if EDGE:
        d_logits = gl.where(weights == 0.0, 0.0, d_logits)  # another document's delta may be NaN
    ds = narrowed(d_logits, p_layout, ELEMENT)
    dk = warpgroup_mma(ds, q_tile, dk, is_async=True)
    dk, dv, p, ds = warpgroup_mma_wait(0, deps=(dk, dv, p, ds))
    mbarrier.arrive(q_empty.index(slot))
    return dk, dv
