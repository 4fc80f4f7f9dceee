"""Forward kernel for Hopper: interval, columns and extra keys of `kernels/attention/forward.py`, with one warp that only loads.

The mathematics is that of the portable kernel. A program holds warpgroups of 64 query rows each, and one warp that keeps the
copy engine busy:

    loader        K(0) V(0) K(1) V(1) ...        into a ring of slots; in a ring of two, K is let go before its V
    warpgroups    s(i+1) = q k(i+1)^T  is issued, then  acc += p(i) v(i);  while the second product runs, the softmax of
                  s(i+1) is computed; then p(i+1) is narrowed into the registers that p(i) has left, and acc corrected
                  where a maximum has grown by much (`softmax`)

The interval's tiles are walked from the last to the first: tiles that its right edge cuts (masked), tiles that all of a
warpgroup's rows see, tiles that its left edge cuts (masked); those that none of them sees it lets pass. Tiles of gathered
columns and of extra keys follow in the same ring; a warpgroup's only row of extra keys comes first, and is not masked. Programs
are persistent: each takes several blocks (`own_block`), and the loader runs ahead into the next block while the last one is
divided, narrowed and stored through a shared tile of its own; at head dim 256 there is no room for one, and results leave
through the queries' tiles, which the loader waits for.
Registers: 64 x KEYS logits and 64 x D sums in float32 are KEYS / 2 + D / 2 a thread, the narrowed weights KEYS / 4 more: 112 of
160 for each of three warpgroups at head dim 128, whose waits cover each other's better than two warpgroups' with tiles of 128 keys.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from ..geometry import Geometry
from ..launch import Inputs
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
    own_extra_tile,
    own_tiles,
    place_keys,
)
from .descriptors import head_first_tiles, programs_of, walk_arguments
from .results import store_result
from .ring import barriers, make_ring, odd_turn
from .softmax import added, awaited, faded, first_powers, sums_by_thread, take_powers

ROWS = 64  # of a warpgroup
KEYS = 64  # of a tile
# Slots of the ring, how many warpgroups there are, whether results have a tile of their own to leave through or take the
# queries', and registers of a thread, by head dim.
SHAPES = {
    64: {"SLOTS": 8, "CONSUMERS": 3, "APART": True, "REGISTERS": 160},
    128: {"SLOTS": 4, "CONSUMERS": 3, "APART": True, "REGISTERS": 160},
    256: {"SLOTS": 2, "CONSUMERS": 2, "APART": False, "REGISTERS": 240},
}


@gluon.jit
def _load(
    sources, queries, ring, where,
    CHUNKS: gl.constexpr, SIDES: gl.constexpr, EXTRA: gl.constexpr, ALIGNED: gl.constexpr, PACKED: gl.constexpr,
    GROUP: gl.constexpr, APART: gl.constexpr,
):  # fmt: skip
    q, k, v, column_k, column_v, extra_k, extra_v = sources
    q_tiles, q_ready, q_empty = queries
    k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty = ring
    (
        blocks, documents, parameters, column_ranges, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
        extra_block, total,
    ) = where  # fmt: skip
    ROWS: gl.constexpr = q.block_type.shape[2]
    KEYS: gl.constexpr = k.block_type.shape[2]
    CONSUMERS: gl.constexpr = q_tiles.type.shape[0]
    TOGETHER: gl.constexpr = k_tiles.type.shape[0] > 2
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
        if not APART:  # keys come while the results of the block before leave through the queries' tiles
            ahead = gl.minimum(tiles, k_tiles.type.shape[0])
            for tile in range(0, ahead):
                at = k_start + begin + (tiles - 1 - tile) * KEYS
                load_keys(
                    k, v, batch, kv_head, at, loaded, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, TOGETHER
                )
                loaded += 1
        for c in gl.static_range(CONSUMERS):
            mbarrier.wait(q_empty.index(c), phase ^ 1)
            mbarrier.expect(q_ready.index(c), q.block_type.nbytes)
            tma.async_copy_global_to_shared(q, [batch, head, row + ROWS * c, 0], q_ready.index(c), q_tiles.index(c))
        phase ^= 1
        if ALIGNED:
            loaded = load_extra(
                extra_k, extra_v, batch, kv_head, documents, document, x, stop, extra_block, EXTRA, EXTRA, loaded,
                k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, PACKED, TOGETHER,
            )  # fmt: skip
        for tile in range(ahead, tiles):
            at = k_start + begin + (tiles - 1 - tile) * KEYS
            load_keys(k, v, batch, kv_head, at, loaded, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, TOGETHER)
            loaded += 1
        loaded = load_beside(
            column_k, column_v, extra_k, extra_v, runs, documents, batch, kv_head, document, x, stop,
            loaded, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, extra_block, SIDES, 0 if ALIGNED else EXTRA, PACKED,
            TOGETHER,
        )  # fmt: skip


@gluon.jit
def _step(
    q, ring, used, start, stop, held_keys, state, low, high, positions, scale,
    KIND: gl.constexpr, CLEAN: gl.constexpr,
):  # fmt: skip
    """Tile number `used` of the ring joins the softmax, and the tile before it, of `held_keys` keys, the output.

    CLEAN: that tile may hold another document's rows. A branch that p passes costs instructions in every step.
    """
    k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty = ring
    p, acc, top, total = state
    SLOTS: gl.constexpr = k_tiles.type.shape[0]
    KEYS: gl.constexpr = k_tiles.type.shape[1]
    ROWS: gl.constexpr = acc.shape[0]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    p_layout: gl.constexpr = p.type.layout
    ELEMENT: gl.constexpr = v_tiles.dtype
    TOGETHER: gl.constexpr = SLOTS > 2
    slot = used & (SLOTS - 1)
    before = (used - 1) & (SLOTS - 1)
    j = place_keys(start, stop, positions, s_layout, KEYS, KIND)
    mbarrier.wait(k_ready.index(slot), odd_turn(used, SLOTS))
    blank = gl.zeros([ROWS, KEYS], gl.float32, s_layout)
    logits = warpgroup_mma(q, k_tiles.index(slot).permute((1, 0)), blank, use_acc=False, is_async=True)
    mbarrier.wait(v_ready.index(before), odd_turn(used - 1, SLOTS))
    if CLEAN and held_keys < KEYS:
        clean(v_tiles.index(before), 0, 0, held_keys)
    acc = warpgroup_mma(p, v_tiles.index(before), acc, is_async=True)
    logits = warpgroup_mma_wait(1, deps=(logits,))
    if not TOGETHER:
        mbarrier.arrive(k_empty.index(slot))
    logits = hide(logits, j, low, high, KIND)
    weights, fade, grown, top = take_powers(logits, top, scale, KIND != "none")
    total = added(total, fade, awaited(sums_by_thread(weights)))
    acc, p, weights = warpgroup_mma_wait(0, deps=(acc, p, weights))
    following = narrowed(weights, p_layout, ELEMENT)  # into the registers that p has left
    mbarrier.arrive(v_empty.index(before))
    acc = faded(acc, fade, grown)
    return following, acc, top, total


@gluon.jit
def _first_keys(q, ring, used, acc, scale, EXTRA: gl.constexpr):
    """Tile number `used`, of which all rows see the first EXTRA keys and have seen none before: sums, maximum, weights' sum."""
    k_tiles, v_tiles, k_ready, _, v_ready, v_empty = ring
    SLOTS: gl.constexpr = k_tiles.type.shape[0]
    ROWS: gl.constexpr = acc.shape[0]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, EXTRA, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    slot = used & (SLOTS - 1)
    mbarrier.wait(k_ready.index(slot), odd_turn(used, SLOTS))
    blank = gl.zeros([ROWS, EXTRA], gl.float32, s_layout)
    keys = k_tiles.index(slot).slice(0, EXTRA)
    logits = warpgroup_mma(q, keys.permute((1, 0)), blank, use_acc=False, is_async=True)
    logits = warpgroup_mma_wait(0, deps=(logits,))
    weights, top = first_powers(logits, scale, False)
    p = narrowed(weights, p_layout, v_tiles.dtype)
    mbarrier.wait(v_ready.index(slot), odd_turn(used, SLOTS))
    acc = warpgroup_mma(p, v_tiles.index(slot).slice(0, EXTRA), acc, is_async=True)
    acc, p = warpgroup_mma_wait(0, deps=(acc, p))
    mbarrier.arrive(v_empty.index(slot))
    return acc, top, sums_by_thread(weights)


@gluon.jit
def _skip(ring, used):
    """Let a tile pass that none of the warpgroup's rows see."""
    _, _, k_ready, k_empty, v_ready, v_empty = ring
    SLOTS: gl.constexpr = k_ready.type.shape[0]
    TOGETHER: gl.constexpr = SLOTS > 2
    slot = used & (SLOTS - 1)
    phase = odd_turn(used, SLOTS)
    mbarrier.wait(k_ready.index(slot), phase)
    if not TOGETHER:
        mbarrier.arrive(k_empty.index(slot))
    mbarrier.wait(v_ready.index(slot), phase)
    mbarrier.arrive(v_empty.index(slot))


@gluon.jit
def _attend(
    queries, ring, results, where, c,
    CHUNKS: gl.constexpr, SIDES: gl.constexpr, EXTRA: gl.constexpr, ALIGNED: gl.constexpr, PACKED: gl.constexpr,
    APART: gl.constexpr,
):  # fmt: skip
    q_tiles, q_ready, q_empty = queries
    k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty = ring
    out_tiles, out, out_rows, lse, positions, stride_ob, stride_ot, stride_oh, scale = results
    (
        blocks, documents, parameters, column_ranges, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
        extra_block, total_blocks,
    ) = where  # fmt: skip
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
    COLUMNS: gl.constexpr = "before" if SIDES == 1 else "beside"
    OTHER_EXTRA: gl.constexpr = 0 if ALIGNED else EXTRA
    TOGETHER: gl.constexpr = SLOTS > 2
    out_tile = out_tiles.index(c)
    used = 0
    phase = 0
    for nth in range(gl.program_id(0), total_blocks, gl.num_programs(0)):
        batch, head, block, document, x_block, stop, row, _k_start, own_keys, begin, tiles = locate_queries(
            own_block(nth, total_blocks), blocks, documents, parameters, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
            CHUNKS, PACKED, ROWS * CONSUMERS, KEYS,
        )  # fmt: skip
        x = x_block + c * ROWS
        row += c * ROWS
        i = x + gl.arange(0, ROWS, row_layout)
        low, high = interval_bounds(i, own_keys, left, right, parameters, CHUNKS)
        column, whole_columns, column_stop, behind, behind_stop = column_runs(column_ranges, block, SIDES, KEYS)
        # Tiles of columns follow at once, while the last tile's values are still held: then none is let pass before them.
        first, uncut, cut, end = own_tiles(
            x, stop, own_keys, begin, tiles, left, right, parameters, CHUNKS, ROWS, KEYS, SIDES > 0 or OTHER_EXTRA > 0, False,
        )  # fmt: skip
        mbarrier.wait(q_ready.index(c), phase)
        q_tile = q_tiles.index(c)
        acc = gl.zeros([ROWS, D], gl.float32, o_layout)
        if ALIGNED:
            before, behind_own = own_extra_tile(x_block, x, stop, extra_block)
            for _ in range(0, before):
                _skip(ring, used)
                used += 1
            acc, top, total = _first_keys(q_tile, ring, used, acc, scale, EXTRA)
            used += 1
            for _ in range(0, behind_own):
                _skip(ring, used)
                used += 1
        for _ in range(end, tiles):
            _skip(ring, used)
            used += 1

        # The first tile alone: its product has none to hide behind.
        slot = used & (SLOTS - 1)
        mbarrier.wait(k_ready.index(slot), odd_turn(used, SLOTS))
        blank = gl.zeros([ROWS, KEYS], gl.float32, s_layout)
        logits = warpgroup_mma(q_tile, k_tiles.index(slot).permute((1, 0)), blank, use_acc=False, is_async=True)
        logits = warpgroup_mma_wait(0, deps=(logits,))
        if not TOGETHER:
            mbarrier.arrive(k_empty.index(slot))
        start = begin + (end - 1) * KEYS
        logits = hide(logits, place_keys(start, own_keys, positions, s_layout, KEYS, "both"), low, high, "both")
        if ALIGNED:
            weights, fade, grown, top = take_powers(logits, top, scale, True)
            total = added(total, fade, sums_by_thread(weights))
            acc = faded(acc, fade, grown)
        else:
            weights, top = first_powers(logits, scale, True)
            total = sums_by_thread(weights)
        p = narrowed(weights, p_layout, ELEMENT)
        if PACKED and start + KEYS > own_keys:  # only the last tile reaches into the next document
            mbarrier.wait(v_ready.index(slot), odd_turn(used, SLOTS))
            clean(v_tiles.index(slot), start, 0, own_keys)
        held = KEYS
        state = (p, acc, top, total)
        used += 1

        edges = (end - 1, gl.minimum(cut, end - 1), gl.minimum(uncut, end - 1), first)
        for part in gl.static_range(3):
            for tile in range(edges[part] - 1, edges[part + 1] - 1, -1):
                state = _step(
                    q_tile, ring, used, begin + tile * KEYS, own_keys, held, state, low, high, positions, scale,
                    "high" if part == 0 else "none" if part == 1 else "both", False,
                )  # fmt: skip
                used += 1
        if SIDES > 0:
            for at in range(column, whole_columns, KEYS):
                state = _step(
                    q_tile, ring, used, at, column_stop, held, state, low, high, positions, scale, "none", False,
                )  # fmt: skip
                used += 1
            for at in range(whole_columns, column_stop, KEYS):
                state = _step(
                    q_tile, ring, used, at, column_stop, held, state, low, high, positions, scale, COLUMNS, False,
                )  # fmt: skip
                held = column_stop - at
                used += 1
        if SIDES > 1:
            for at in range(behind, behind_stop, KEYS):
                state = _step(
                    q_tile, ring, used, at, behind_stop, held, state, low, high, positions, scale, "beside", PACKED,
                )  # fmt: skip
                held = behind_stop - at
                used += 1
        if OTHER_EXTRA > 0:
            at_first, extra_stop, _ = extra_run(x_block, stop, document, documents, extra_block, EXTRA, PACKED)
            own_extra = i // extra_block * EXTRA
            for at in range(at_first, extra_stop, KEYS):
                state = _step(
                    q_tile, ring, used, at, extra_stop, held, state, own_extra, own_extra + EXTRA, positions, scale,
                    "both", PACKED,
                )  # fmt: skip
                held = extra_stop - at
                used += 1
        if APART:
            mbarrier.arrive(q_empty.index(c))
        phase ^= 1
        p, acc, top, total = state

        # The values of the tile that came last, and the result; a query without keys gets 0 and -inf.
        before = (used - 1) & (SLOTS - 1)
        mbarrier.wait(v_ready.index(before), odd_turn(used - 1, SLOTS))
        if PACKED and held < KEYS:
            clean(v_tiles.index(before), 0, 0, held)
        acc = warpgroup_mma(p, v_tiles.index(before), acc, is_async=True)
        inside = i < stop
        rows = row + gl.arange(0, ROWS, row_layout)
        whole = gl.convert_layout(gl.sum(total, 1), row_layout)
        share = 1.0 / gl.where(whole == 0.0, 1.0, whole)
        share = gl.convert_layout(share, gl.SliceLayout(1, o_layout))
        top = gl.convert_layout(gl.max(top, 1), row_layout)
        lse_at = lse + (batch.to(gl.int64) * n_queries + rows) * n_heads + head
        gl.store(lse_at, (top + gl.log2(gl.maximum(whole, 1.0))) * 0.6931471805599453, mask=inside)
        acc, p = warpgroup_mma_wait(0, deps=(acc, p))
        mbarrier.arrive(v_empty.index(before))
        for _ in range(0, first):
            _skip(ring, used)
            used += 1
        result = (acc * share[:, None]).to(out_tiles.dtype)
        store_result(
            result, out_tile, out, out_rows, batch, head, row, stop - x, stride_ob, stride_ot, stride_oh, PACKED, APART
        )
        if not APART:
            mbarrier.arrive(q_empty.index(c))
    tma.store_wait(0)


_NUMBERS = ["n_queries", "n_keys", "n_blocks", "n_heads", "offset", "total", "left", "right", "extra_block"]


@gluon.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_NUMBERS)
def forward_kernel(
    q, k, v, column_k, column_v, extra_k, extra_v, out, out_rows, lse,
    blocks, documents, parameters, column_ranges, positions,
    n_blocks, n_heads, n_queries, n_keys, offset, left, right, extra_block, total, stride_ob, stride_ot, stride_oh, scale,
    CHUNKS: gl.constexpr, SIDES: gl.constexpr, EXTRA: gl.constexpr, ALIGNED: gl.constexpr, PACKED: gl.constexpr,
    GROUP: gl.constexpr, SLOTS: gl.constexpr, CONSUMERS: gl.constexpr, APART: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = q.block_type.shape[2]
    KEYS: gl.constexpr = k.block_type.shape[2]
    D: gl.constexpr = k.block_type.shape[3]
    flat: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, D], q.dtype)
    q_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, ROWS, D], flat)
    out_tiles = gl.allocate_shared_memory(q.dtype, [CONSUMERS, ROWS, D], flat) if APART else q_tiles
    gl.static_assert(SLOTS & (SLOTS - 1) == 0)  # a slot's number is taken by its last bits
    ring = make_ring(q.dtype, SLOTS, SLOTS, KEYS, D, CONSUMERS)
    q_ready = barriers(CONSUMERS, 1)
    q_empty = barriers(CONSUMERS, 1)
    queries = (q_tiles, q_ready, q_empty)
    results = (out_tiles, out, out_rows, lse, positions, stride_ob, stride_ot, stride_oh, scale)
    where = (
        blocks, documents, parameters, column_ranges, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
        extra_block, total,
    )  # fmt: skip
    sources = (q, k, v, column_k, column_v, extra_k, extra_v)
    if CONSUMERS == 2:
        gl.warp_specialize([
            (_attend, (queries, ring, results, where, 0, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, APART)),
            (_attend, (queries, ring, results, where, 1, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, APART)),
            (_load, (sources, queries, ring, where, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, GROUP, APART)),
        ], [4, 1], [REGISTERS, 24])  # fmt: skip
    else:
        gl.warp_specialize([
            (_attend, (queries, ring, results, where, 0, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, APART)),
            (_attend, (queries, ring, results, where, 1, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, APART)),
            (_attend, (queries, ring, results, where, 2, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, APART)),
            (_load, (sources, queries, ring, where, CHUNKS, SIDES, EXTRA, ALIGNED, PACKED, GROUP, APART)),
        ], [4, 4, 1], [REGISTERS, REGISTERS, 24])  # fmt: skip


def forward(inputs: Inputs, where: Geometry, scale: float) -> tuple[Tensor, Tensor]:
    """Output in q's dtype and LSE ``[B, T, Hq]`` in float32."""
    q, k, v = inputs.q, inputs.k, inputs.v
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if out.numel():
        launch = where.launches.kept((forward_kernel, alike(*inputs)), lambda: _launch(inputs, out, where))
        launch(q=q, k=k, v=v, out=out, out_rows=out, lse=lse, scale=scale * LOG2_E, **beside_tensors(inputs, where))
    return out, lse


def _launch(inputs: Inputs, out: Tensor, where: Geometry) -> Launch:
    constants = forward_constants(where, out.shape[2] // inputs.k.shape[2], out.shape[3])
    rows = ROWS * constants["CONSUMERS"]
    grid, fixed = walk_arguments(inputs, where, "q", rows, programs_of(out.device))
    fixed |= constants | beside_arguments(where, rows, out.device) | strides("ob ot oh", out)
    tiles = head_first_tiles(ROWS, "q", "out") | head_first_tiles(KEYS, "k", "v", *BESIDE)
    return Launch(forward_kernel, grid, fixed, tiles)


def forward_constants(where: Geometry, group: int, head_dim: int) -> dict[str, Any]:
    """What the kernel is compiled for.

    Three warpgroups cover each other's waits better than two, and fit where sums take no more than 64 registers a thread. Extra
    keys are ALIGNED if a warpgroup's queries have one row of them, no wider than a tile; packed documents' are not, which
    would spill.
    """
    shape = SHAPES[head_dim]
    extra = beside_constants(where)
    aligned = shape["APART"] and one_row(where, ROWS) and not where.packed
    return shape | {"CHUNKS": where.chunks, "PACKED": where.packed, "GROUP": group, "ALIGNED": aligned, **extra}
