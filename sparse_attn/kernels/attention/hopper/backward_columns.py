"""Backward kernel for columns on Hopper: `kernels/attention/backward_columns.py` with the products of `backward_keys.py`.

A program holds a tile of gathered columns and walks past its share of the queries that see one of them outside their
interval; what it found it writes as sums of its own in float32, which are added in one fixed order. Many columns: 64 to a
warpgroup, and both take every query tile, since reading the queries is what a program of few columns waits for. Few: both
hold the same ones and take the query tiles in turn, so that no row of a product is wasted twice.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..backward_columns import affordable_splits
from ..column_sums import add_column_sums
from ..geometry import Geometry
from ..launch import Gradients, Inputs, gather_columns
from ..launching import Launch, alike
from ..tiles import LOG2_E
from .blocks import document_bounds, forgotten, own_block, query_bounds
from .descriptors import copyable, head_first_tiles, programs_of, rows_tiles
from .query_ring import add_queries, load_group, load_held, skip_queries
from .ring import barriers

KEYS = 64  # of a warpgroup
_ROWS_A_SPLIT = 256  # fewer rows than this are not worth a sum of their own
_SHARE = 0.01  # of the memory that the call's tensors take: as much may the sums take; rows' two numbers take 0.006
_WAVES = 4  # of tiles of different lengths, so many shares for each program at most


@gluon.jit
def _locate(
    nth, blocks, documents, parameters, positions, n_blocks, n_kv_heads, n_keys, offset, left, right,
    CHUNKS: gl.constexpr, SIDES: gl.constexpr, PACKED: gl.constexpr, ROWS: gl.constexpr,
):  # fmt: skip
    """Share nth: batch, KV head, its number in the table, first column and end, the document's number of keys, its first
    query's position; and its tiles of queries: where they begin, the row of the first, and how many there are."""
    kv_head = nth % n_kv_heads
    entry = nth // n_kv_heads % n_blocks
    batch = nth // n_kv_heads // n_blocks
    column = gl.load(blocks + 6 * entry + 2)
    column_stop = gl.load(blocks + 6 * entry + 3)
    q_start, own_keys, first_query = 0, n_keys, offset
    if PACKED:
        q_start, _, own_keys, first_query = document_bounds(documents, gl.load(blocks + 6 * entry))
    seen = first_query
    if SIDES == 1:
        _, seen = query_bounds(gl.load(positions + column), first_query, own_keys, left, right, parameters, CHUNKS)
        seen = gl.maximum(seen, first_query)
    seen -= (q_start + seen - first_query) % 4  # the copy engine takes runs of float32 from multiples of 16 bytes on
    splits = gl.load(blocks + 6 * entry + 5) * ROWS
    share = (gl.maximum(own_keys - seen, 0) + splits - 1) // splits
    begin = seen + gl.load(blocks + 6 * entry + 4) * share * ROWS
    tiles = gl.minimum(share, (gl.maximum(own_keys - begin, 0) + ROWS - 1) // ROWS)
    row = q_start + begin - first_query
    return batch, kv_head, entry, column, column_stop, own_keys, first_query, begin, row, tiles


@gluon.jit
def _load(
    q, d_out, k, v, lse2, delta, blocks, documents, parameters, positions, k_tiles, v_tiles, q_tiles, d_tiles, lse_tiles,
    delta_tiles, k_ready, k_empty, q_ready, q_empty, n_blocks, n_kv_heads, n_keys, offset, left, right, total,
    CHUNKS: gl.constexpr, SIDES: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = q.block_type.shape[2]
    loaded = 0
    phase = 0
    for nth in range(gl.program_id(0), total, gl.num_programs(0)):
        batch, kv_head, _, column, _, _, _, _, row, tiles = _locate(
            own_block(nth, total), blocks, documents, parameters, positions, n_blocks, n_kv_heads, n_keys, offset, left, right,
            CHUNKS, SIDES, PACKED, ROWS,
        )  # fmt: skip
        load_held(k, v, batch, kv_head, column, phase, k_tiles, v_tiles, k_ready, k_empty, False)
        phase ^= 1
        loaded = load_group(
            q, d_out, lse2, delta, batch, kv_head, n_kv_heads, row, tiles, loaded, q_tiles, d_tiles, lse_tiles, delta_tiles,
            q_ready, q_empty, GROUP,
        )  # fmt: skip


@gluon.jit
def _walk(
    first, stop, c, base, begin, k, v, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty, first_query, own_keys,
    dk, dv, low, high, scale2, KIND: gl.constexpr, APART: gl.constexpr, PACKED: gl.constexpr,
):  # fmt: skip
    """Take those of a head's tiles first .. stop that are the warpgroup's; number `base` of the ring is the head's first.

    Of an even ring each warpgroup has every second slot for good: who waits for a slot's barrier must have seen its last
    phase, since a barrier tells a phase from the one before only.
    """
    ROWS: gl.constexpr = q_tiles.type.shape[1]
    gl.static_assert(not APART or q_tiles.type.shape[0] % 2 == 0)
    STEP: gl.constexpr = 2 if APART else 1
    if APART:
        first += (base + first + c) % 2
    for tile in range(first, stop, STEP):
        dk, dv = add_queries(
            k, v, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty, base + tile, begin + tile * ROWS,
            first_query, own_keys, dk, dv, low, high, scale2, KIND, PACKED,
        )  # fmt: skip
    return dk, dv


@gluon.jit
def _skip(stop, c, base, q_ready, q_empty, APART: gl.constexpr):
    """Let a head's first tiles pass, which none of the warpgroup's columns are seen from."""
    first = 0
    STEP: gl.constexpr = 2 if APART else 1
    if APART:
        first = (base + c) % 2
    for tile in range(first, stop, STEP):
        skip_queries(base + tile, q_ready, q_empty)


@gluon.jit
def _compute(
    k_tiles, v_tiles, q_tiles, d_tiles, lse_tiles, delta_tiles, k_ready, k_empty, q_ready, q_empty, sums_stored, dk_sums, dv_sums,
    blocks, documents, parameters, positions, n_blocks, n_kv_heads, n_keys, offset, left, right, total,
    stride_gs, stride_gb, stride_gt, stride_gh, scale, scale2, c,
    CHUNKS: gl.constexpr, SIDES: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    APART: gl.constexpr = k_tiles.type.shape[0] == 1
    KEYS: gl.constexpr = k_tiles.type.shape[1]
    D: gl.constexpr = k_tiles.type.shape[2]
    ROWS: gl.constexpr = q_tiles.type.shape[1]
    HIDDEN: gl.constexpr = "from" if SIDES == 1 else "beside"
    EDGE: gl.constexpr = "run" if SIDES == 1 else "edge"
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    held = c
    if APART:
        held = 0
    k_tile = k_tiles.index(held)
    v_tile = v_tiles.index(held)
    base = 0
    phase = 0
    for nth in range(gl.program_id(0), total, gl.num_programs(0)):
        _, _, _, x, stop, own_keys, first_query, begin, _, tiles = _locate(
            own_block(nth, total), blocks, documents, parameters, positions, n_blocks, n_kv_heads, n_keys, offset, left, right,
            CHUNKS, SIDES, PACKED, ROWS,
        )  # fmt: skip
        x += held * KEYS
        at = x + gl.arange(0, KEYS, gl.SliceLayout(1, s_layout))
        j = gl.load(positions + at, mask=at < stop, other=0)
        low, high = query_bounds(j, first_query, own_keys, left, right, parameters, CHUNKS)
        first_j = gl.load(positions + gl.minimum(x, stop - 1))
        last_j = gl.load(positions + (gl.minimum(x + KEYS, stop) - 1))
        first_low, first_high = query_bounds(first_j, first_query, own_keys, left, right, parameters, CHUNKS)
        _, last_high = query_bounds(last_j, first_query, own_keys, left, right, parameters, CHUNKS)

        # Of the tiles: the first that sees any of the columns; the end of those before every column's interval, at the
        # front of which another document may stand; the first behind every interval; the end of those inside the document.
        first = 0
        if SIDES == 1:
            first = gl.minimum(gl.maximum(first_high - begin, 0) // ROWS, tiles)
        first = gl.where(x < stop, first, tiles)
        inside = tiles
        if PACKED:
            inside = gl.maximum(gl.minimum(gl.maximum(own_keys - begin, 0) // ROWS, tiles), first)
        front = first
        if PACKED:
            front = gl.minimum(gl.where(begin < first_query, gl.maximum(first, 1), first), inside)
        before = front
        if SIDES == 2:
            before = gl.minimum(gl.maximum(gl.maximum(first_low - begin, 0) // ROWS, front), inside)
        behind = gl.minimum(gl.maximum((gl.maximum(last_high - begin, 0) + ROWS - 1) // ROWS, before), inside)
        if SIDES == 1:  # queries from the end of a column's interval on, up to the document's end
            low = gl.maximum(high, first_query)
            high = gl.maximum(high, own_keys)

        dk = gl.zeros([KEYS, D], gl.float32, o_layout)
        dv = gl.zeros([KEYS, D], gl.float32, o_layout)
        mbarrier.wait(k_ready.index(held), phase)
        phase ^= 1
        for _ in range(GROUP):
            _skip(first, c, base, q_ready, q_empty, APART)
            if PACKED:
                dk, dv = _walk(
                    first, front, c, base, begin, k_tile, v_tile, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty,
                    first_query, own_keys, dk, dv, low, high, scale2, EDGE, APART, PACKED,
                )  # fmt: skip
            if SIDES == 2:
                dk, dv = _walk(
                    front, before, c, base, begin, k_tile, v_tile, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty,
                    first_query, own_keys, dk, dv, low, high, scale2, "none", APART, PACKED,
                )  # fmt: skip
            dk, dv = _walk(
                before, behind, c, base, begin, k_tile, v_tile, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty,
                first_query, own_keys, dk, dv, low, high, scale2, HIDDEN, APART, PACKED,
            )  # fmt: skip
            dk, dv = _walk(
                behind, inside, c, base, begin, k_tile, v_tile, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty,
                first_query, own_keys, dk, dv, low, high, scale2, "none", APART, PACKED,
            )  # fmt: skip
            if PACKED:
                dk, dv = _walk(
                    inside, tiles, c, base, begin, k_tile, v_tile, q_tiles, d_tiles, lse_tiles, delta_tiles, q_ready, q_empty,
                    first_query, own_keys, dk, dv, low, high, scale2, EDGE, APART, PACKED,
                )  # fmt: skip
            base += tiles

        batch, kv_head, entry, x, stop, _, _, _, _, _ = _locate(
            own_block(forgotten(nth), total), blocks, documents, parameters, positions, n_blocks, n_kv_heads, n_keys,
            offset, left, right, CHUNKS, SIDES, PACKED, ROWS,
        )  # fmt: skip
        own = held * KEYS + gl.arange(0, KEYS, gl.SliceLayout(1, o_layout))
        d = gl.arange(0, D, gl.SliceLayout(0, o_layout))
        sum_at = entry.to(gl.int64) * stride_gs + batch.to(gl.int64) * stride_gb + kv_head * stride_gh
        to = (sum_at + own * stride_gt)[:, None] + d[None, :]
        stored = (x + own < stop)[:, None]
        dk *= scale
        if APART and c == 1:  # both hold the same columns: the second adds to what the first has stored
            mbarrier.wait(sums_stored.index(0), phase ^ 1)
            dk += gl.load(dk_sums + to, mask=stored, other=0.0)
            dv += gl.load(dv_sums + to, mask=stored, other=0.0)
        gl.store(dk_sums + to, dk, mask=stored)
        gl.store(dv_sums + to, dv, mask=stored)
        if APART:
            gl.thread_barrier()
            mbarrier.arrive(sums_stored.index(0), pred=c == 0)
        mbarrier.arrive(k_empty.index(held))


@gluon.jit(do_not_specialize=["n_keys", "n_blocks", "n_kv_heads", "offset", "total", "left", "right", "stride_gt"])
def backward_columns_kernel(
    q, d_out, k, v, lse2, delta, dk_sums, dv_sums, blocks, documents, parameters, positions,
    n_blocks, n_kv_heads, n_keys, offset, left, right, total, stride_gs, stride_gb, stride_gt, stride_gh, scale, scale2,
    CHUNKS: gl.constexpr, SIDES: gl.constexpr, PACKED: gl.constexpr, GROUP: gl.constexpr, APART: gl.constexpr,
    SLOTS: gl.constexpr,
):  # fmt: skip
    CONSUMERS: gl.constexpr = 2
    TILES: gl.constexpr = 1 if APART else CONSUMERS
    READERS: gl.constexpr = 1 if APART else CONSUMERS  # of a query tile
    HOLDERS: gl.constexpr = CONSUMERS if APART else 1  # of a tile of columns
    KEYS: gl.constexpr = k.block_type.shape[2]
    ROWS: gl.constexpr = q.block_type.shape[2]
    D: gl.constexpr = k.block_type.shape[3]
    flat: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, D], q.dtype)
    k_tiles = gl.allocate_shared_memory(q.dtype, [TILES, KEYS, D], flat)
    v_tiles = gl.allocate_shared_memory(q.dtype, [TILES, KEYS, D], flat)
    q_tiles = gl.allocate_shared_memory(q.dtype, [SLOTS, ROWS, D], flat)
    d_tiles = gl.allocate_shared_memory(q.dtype, [SLOTS, ROWS, D], flat)
    lse_tiles = gl.allocate_shared_memory(lse2.dtype, [SLOTS, 1, ROWS], lse2.layout)
    delta_tiles = gl.allocate_shared_memory(lse2.dtype, [SLOTS, 1, ROWS], lse2.layout)
    k_ready = barriers(TILES, 1)
    k_empty = barriers(TILES, HOLDERS)
    q_ready = barriers(SLOTS, 1)
    q_empty = barriers(SLOTS, READERS)
    sums_stored = barriers(1, 1)
    gl.warp_specialize([
        (_compute, (
            k_tiles, v_tiles, q_tiles, d_tiles, lse_tiles, delta_tiles, k_ready, k_empty, q_ready, q_empty, sums_stored,
            dk_sums, dv_sums, blocks, documents, parameters, positions, n_blocks, n_kv_heads, n_keys, offset, left, right, total,
            stride_gs, stride_gb, stride_gt, stride_gh, scale, scale2, 0, CHUNKS, SIDES, PACKED, GROUP,
        )),
        (_compute, (
            k_tiles, v_tiles, q_tiles, d_tiles, lse_tiles, delta_tiles, k_ready, k_empty, q_ready, q_empty, sums_stored,
            dk_sums, dv_sums, blocks, documents, parameters, positions, n_blocks, n_kv_heads, n_keys, offset, left, right, total,
            stride_gs, stride_gb, stride_gt, stride_gh, scale, scale2, 1, CHUNKS, SIDES, PACKED, GROUP,
        )),
        (_load, (
            q, d_out, k, v, lse2, delta, blocks, documents, parameters, positions, k_tiles, v_tiles, q_tiles, d_tiles,
            lse_tiles, delta_tiles, k_ready, k_empty, q_ready, q_empty, n_blocks, n_kv_heads, n_keys, offset, left, right,
            total, CHUNKS, SIDES, PACKED, GROUP,
        )),
    ], [4, 1], [240, 24])  # fmt: skip


def add_backward_columns(
    dk: Tensor, dv: Tensor, inputs: Inputs, gradients: Gradients, where: Geometry, scale: float
) -> None:
    """Add the columns' share to dk and dv, in place. Memory: one sum for each block of columns,
    and as many further ones as take at most `_SHARE` of what the tensors of the call take."""
    q = inputs.q
    columns = where.column_tables(q.device)
    if columns is None:
        return
    d_out = copyable(gradients.d_out)
    _, tokens = columns
    batch, _, n_kv_heads, head_dim = inputs.k.shape
    held = min(where.most_columns, 2 * KEYS)
    most = _shares(inputs, where, held)
    blocks, places, groups = where.column_blocks(held, most, _ROWS_A_SPLIT, q.device)
    sums = torch.empty((len(blocks), 2, batch, held, n_kv_heads, head_dim), dtype=torch.float32, device=q.device)
    key = (backward_columns_kernel, sums.shape, programs_of(q.device), alike(*inputs, d_out))
    launch = where.once(key, lambda: _launch(inputs, sums, blocks, where))
    column_k, column_v = gather_columns(inputs, where)
    launch(
        q=q, d_out=d_out, k=column_k, v=column_v, lse2=gradients.lse2, delta=gradients.delta,
        dk_sums=sums[:, 0], dv_sums=sums[:, 1], scale=scale, scale2=scale * LOG2_E,
    )  # fmt: skip
    add_column_sums(dk, dv, sums, places, tokens, groups)


def _launch(inputs: Inputs, sums: Tensor, blocks: Tensor, where: Geometry) -> Launch:
    n_queries, n_heads = inputs.q.shape[1:3]
    n_blocks, _, batch, _, n_kv_heads, head_dim = sums.shape
    columns = where.column_tables(sums.device)
    assert columns is not None
    constants = backward_columns_constants(where, n_heads // n_kv_heads, head_dim, where.most_columns <= KEYS)
    rows = constants.pop("ROWS")
    n_keys, total = inputs.k.shape[1], n_blocks * n_kv_heads * batch
    by_sum, _, by_batch, by_column, by_head, _ = sums.stride()
    fixed = constants | {
        "blocks": blocks, "documents": where.document_table(sums.device), "parameters": where.numbers(sums.device),
        "positions": columns[0], "n_blocks": n_blocks, "n_kv_heads": n_kv_heads, "n_keys": n_keys,
        "offset": n_keys - n_queries, "left": where.left, "right": where.right, "total": total,
        "stride_gs": by_sum, "stride_gb": by_batch, "stride_gt": by_column, "stride_gh": by_head, "num_warps": 4,
    }  # fmt: skip
    tiles = head_first_tiles(rows, "q", "d_out") | head_first_tiles(KEYS, "k", "v") | rows_tiles(rows, "lse2", "delta")
    return Launch(backward_columns_kernel, (min(total, programs_of(sums.device)),), fixed, tiles)


def _shares(inputs: Inputs, where: Geometry, held: int) -> int:
    """Into how many shares the queries of all tiles of `held` columns are cut: one for each program where a tile is alone
    or memory is short, else several, since a tile's last share may be a small one."""
    batch, n_kv_heads = inputs.k.shape[0], inputs.k.shape[2]
    affordable = affordable_splits(inputs, held, _SHARE)
    n_tiles = where.column_tiles(held)
    wave = max(programs_of(inputs.q.device) // (n_kv_heads * batch), 1)
    waves = min(_WAVES if n_tiles > 2 else 1, max(affordable // wave, 1))
    return max(min(wave * waves, affordable) - (n_tiles - 1), 1)  # each tile's number of shares is rounded up


def backward_columns_constants(where: Geometry, group: int, head_dim: int, apart: bool) -> dict[str, Any]:
    """What the kernel is compiled for, and the number of query rows of a tile."""
    return {
        "CHUNKS": where.chunks,
        "SIDES": 1 if where.causal else 2,
        "PACKED": where.packed,
        "GROUP": group,
        "APART": apart,
        "SLOTS": 4,
        "ROWS": 64,
    }
