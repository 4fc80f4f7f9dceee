"""Helpers in Gluon: which queries and keys a block works on, and the portable helpers made available to Gluon kernels."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from .. import blocks as portable_blocks
from .. import interval as portable_interval
from .ring import odd_turn

locate_block = gluon.jit(portable_blocks.locate_block.fn)
interval_bounds = gluon.jit(portable_interval.interval_bounds.fn)
query_bounds = gluon.jit(portable_interval.query_bounds.fn)
document_bounds = gluon.jit(portable_blocks.document_bounds.fn)


@gluon.jit
def own_block(nth, total):
    """Which block a program takes for its number nth = program, program + programs, ... of a launch's `total`.

    Each turn hands a block to every program; every second one goes the other way around, so that where blocks have fewer and
    fewer keys nobody gets the longest of every turn. The last whole turn does: who gets a block of the rest had a short one.
    """
    programs = gl.num_programs(0)
    turn = nth // programs
    # Were it known that `total` stays the same, a register would be spent on keeping the number of turns.
    to_come = forgotten(total) // programs - turn
    return gl.where(to_come % 2 == 1, (2 * turn + 1) * programs - 1 - nth, nth)


@gluon.jit
def locate_queries(
    nth, blocks, documents, parameters, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
):  # fmt: skip
    """Block nth of queries: batch, head, number of the block and of its document, first position, end, row of the first,
    first key's token, the document's number of keys; and its tiles of keys: where they begin, and how many there are.

    Heads of one block come together, so that those of a group share its keys in the cache; late blocks, which have most
    keys under causal attention without a window, come first.
    """
    head = nth % n_heads
    block = n_blocks - 1 - nth // n_heads % n_blocks
    batch = nth // n_heads // n_blocks
    document, _, x, stop, q_start, k_start, own_keys, first_query = locate_block(
        block, blocks, documents, offset, offset, n_queries, n_keys, ROWS, PACKED, PACKED
    )
    begin, _ = interval_bounds(x, own_keys, left, right, parameters, CHUNKS)
    _, end = interval_bounds(stop - 1, own_keys, left, right, parameters, CHUNKS)
    tiles = (end - begin + KEYS - 1) // KEYS
    return batch, head, block, document, x, stop, q_start + x - first_query, k_start, own_keys, begin, tiles


@gluon.jit
def own_tiles(
    x, stop, own_keys, begin, tiles, left, right, parameters,
    CHUNKS: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr, FROM_FIRST: gl.constexpr, TO_LAST: gl.constexpr,
):  # fmt: skip
    """Of a block's tiles those that the rows of one warpgroup, x on, see: the first, the first that no row's left edge
    cuts, the first after it that a right edge cuts, and the end. FROM_FIRST, TO_LAST: of the block, whoever sees them.
    """
    first_row = gl.minimum(x, stop - 1)
    last_row = gl.maximum(gl.minimum(x + ROWS, stop) - 1, first_row)
    low, first_high = interval_bounds(first_row, own_keys, left, right, parameters, CHUNKS)
    last_low, high = interval_bounds(last_row, own_keys, left, right, parameters, CHUNKS)
    first = 0 if FROM_FIRST else (low - begin) // KEYS
    end = tiles if TO_LAST else (high - begin + KEYS - 1) // KEYS
    uncut = gl.minimum(gl.maximum((last_low - begin + KEYS - 1) // KEYS, first), end)
    cut = gl.minimum(gl.maximum((first_high - begin) // KEYS, uncut), end)
    return first, uncut, cut, end


@gluon.jit
def column_runs(ranges, block, SIDES: gl.constexpr, KEYS: gl.constexpr):
    """The columns that a block sees: before its interval the first, the end of the tiles that all rows see whole, and the
    end; behind it the first and the end. Asked for early: the numbers are far away.
    """
    start, whole, stop, start_behind, stop_behind = 0, 0, 0, 0, 0
    if SIDES > 0:
        at = ranges + 6 * block
        start = gl.load(at)
        whole = start + (gl.load(at + 1) - start) // KEYS * KEYS
        stop = gl.load(at + 2)
        if SIDES > 1:
            start_behind = gl.load(at + 3)
            stop_behind = gl.load(at + 5)
    return start, whole, stop, start_behind, stop_behind


@gluon.jit
def extra_run(x, stop, document, documents, extra_block, EXTRA: gl.constexpr, PACKED: gl.constexpr):
    """The extra keys of the blocks that the queries x .. stop stand in: first, end, and where the document's begin."""
    base = 0
    if PACKED:
        base = gl.load(documents + 7 * document + 4) * EXTRA
    return x // extra_block * EXTRA, ((stop - 1) // extra_block + 1) * EXTRA, base


@gluon.jit
def own_extra_tile(x_block, x, stop, extra_block):
    """Of the rows of extra keys that a block of queries sees, how many come before that of a warpgroup's, x on, and behind."""
    first = x_block // extra_block
    last = (stop - 1) // extra_block
    own = gl.minimum(x // extra_block, last)
    return own - first, last - own


@gluon.jit
def load_keys(
    k, v, batch, kv_head, at, loaded, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, TOGETHER: gl.constexpr,
):  # fmt: skip
    """Copy a tile of keys and one of values, from row `at` on, into the slots of both that are number `loaded` in turn.

    TOGETHER: who reads them lets both go at once, by `v_empty`.
    """
    SLOTS: gl.constexpr = k_tiles.type.shape[0]
    V_SLOTS: gl.constexpr = v_tiles.type.shape[0]
    slot = loaded % SLOTS
    v_slot = loaded % V_SLOTS
    v_emptied = odd_turn(loaded, V_SLOTS) ^ 1
    if not TOGETHER:
        mbarrier.wait(k_empty.index(slot), odd_turn(loaded, SLOTS) ^ 1)
    else:
        mbarrier.wait(v_empty.index(v_slot), v_emptied)
    mbarrier.expect(k_ready.index(slot), k.block_type.nbytes)
    tma.async_copy_global_to_shared(k, [batch, kv_head, at, 0], k_ready.index(slot), k_tiles.index(slot))
    if not TOGETHER:
        mbarrier.wait(v_empty.index(v_slot), v_emptied)
    mbarrier.expect(v_ready.index(v_slot), v.block_type.nbytes)
    tma.async_copy_global_to_shared(v, [batch, kv_head, at, 0], v_ready.index(v_slot), v_tiles.index(v_slot))


@gluon.jit
def load_beside(
    column_k, column_v, extra_k, extra_v, runs, documents, batch, kv_head, document, x, stop, loaded,
    k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, extra_block,
    SIDES: gl.constexpr, EXTRA: gl.constexpr, PACKED: gl.constexpr, TOGETHER: gl.constexpr,
):  # fmt: skip
    """Copy the tiles of what a block of queries sees beside its interval: columns, then extra keys."""
    KEYS: gl.constexpr = k_tiles.type.shape[1]
    for side in gl.static_range(SIDES):
        start, end = runs[3 * side], runs[2 + 2 * side]
        for at in range(start, end, KEYS):
            load_keys(
                column_k, column_v, batch, kv_head, at, loaded, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty,
                TOGETHER,
            )  # fmt: skip
            loaded += 1
    if EXTRA > 0:
        loaded = load_extra(
            extra_k, extra_v, batch, kv_head, documents, document, x, stop, extra_block, EXTRA, KEYS, loaded,
            k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, PACKED, TOGETHER,
        )  # fmt: skip
    return loaded


@gluon.jit
def load_extra(
    extra_k, extra_v, batch, kv_head, documents, document, x, stop, extra_block, EXTRA: gl.constexpr, STEP: gl.constexpr,
    loaded, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty, PACKED: gl.constexpr, TOGETHER: gl.constexpr,
):  # fmt: skip
    """Copy a tile of what the queries x .. stop see of extra keys, from every STEP keys on: a row of them, or a tile's."""
    start, end, base = extra_run(x, stop, document, documents, extra_block, EXTRA, PACKED)
    for at in range(start, end, STEP):
        load_keys(
            extra_k, extra_v, batch, kv_head, base + at, loaded, k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty,
            TOGETHER,
        )  # fmt: skip
        loaded += 1
    return loaded


@gluon.jit
def place_keys(start, stop, positions, layout: gl.constexpr, KEYS: gl.constexpr, KIND: gl.constexpr):
    """Where the keys of a tile stand: numbers from `start` on, of columns their positions, of those from `stop` on
    one that `hide` hides."""
    j = start + gl.arange(0, KEYS, gl.SliceLayout(0, layout))
    if KIND == "before" or KIND == "beside":
        j = gl.load(positions + j, mask=j < stop, other=2147483647)
    return j


@gluon.jit
def hide(logits, j, low, high, KIND: gl.constexpr):
    """-inf for keys that a row does not see. KIND says which it may not: "none"; "high": those from its `high` on; "both":
    those outside low .. high; columns that do not stand "before" its interval, or not "beside" it, on either side.
    """
    if KIND != "none":
        low = forgotten(low)  # or the comparisons are made, and kept, before there are logits
        high = forgotten(high)
    if KIND == "none":
        seen = logits
    elif KIND == "high":
        seen = gl.where(j[None, :] < high[:, None], logits, float("-inf"))
    elif KIND == "both":
        seen = gl.where((low[:, None] <= j[None, :]) & (j[None, :] < high[:, None]), logits, float("-inf"))
    elif KIND == "before":
        seen = gl.where(j[None, :] < low[:, None], logits, float("-inf"))
    else:
        after = (j[None, :] >= high[:, None]) & (j < 2147483647)[None, :]
        seen = gl.where((j[None, :] < low[:, None]) | after, logits, float("-inf"))
    return seen


@gluon.jit
def locate_keys(
    nth, blocks, documents, parameters, n_blocks, n_kv_heads, n_queries, n_keys, offset, left, right,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, KEYS: gl.constexpr, ROWS: gl.constexpr,
):  # fmt: skip
    """Block nth of keys: batch, KV head, first position, end, token of the first, row of the first query that sees one,
    the document's number of keys, its first query's position; and its tiles of queries: where they begin, and how many."""
    kv_head = nth % n_kv_heads
    batch = nth // n_kv_heads // n_blocks
    _, _, x, stop, q_start, k_start, own_keys, first_query = locate_block(
        nth // n_kv_heads % n_blocks, blocks, documents, 0, offset, n_queries, n_keys, KEYS, PACKED, PACKED
    )
    begin, _ = query_bounds(x, first_query, own_keys, left, right, parameters, CHUNKS)
    _, end = query_bounds(stop - 1, first_query, own_keys, left, right, parameters, CHUNKS)
    begin -= (q_start + begin - first_query) % 4  # the copy engine takes runs of float32 from multiples of 16 bytes on
    tiles = (gl.maximum(end - begin, 0) + ROWS - 1) // ROWS
    return batch, kv_head, x, stop, k_start + x, q_start + begin - first_query, own_keys, first_query, begin, tiles


@gluon.jit
def own_query_tiles(
    x, stop, first_query, own_keys, begin, tiles, left, right, parameters,
    CHUNKS: gl.constexpr, KEYS: gl.constexpr, ROWS: gl.constexpr,
):  # fmt: skip
    """Of a block's tiles of queries those that see some of a warpgroup's keys, x on: the first, the first of those that see
    all of them, the end of these, and the end."""
    last = gl.minimum(x + KEYS, stop) - 1
    own_begin, free_high = query_bounds(x, first_query, own_keys, left, right, parameters, CHUNKS)
    free_low, own_end = query_bounds(last, first_query, own_keys, left, right, parameters, CHUNKS)
    end = gl.minimum((own_end - begin + ROWS - 1) // ROWS, tiles)
    end = gl.where(last < x, 0, gl.maximum(end, 0))
    first = gl.minimum(gl.maximum(own_begin - begin, 0) // ROWS, end)
    free = gl.minimum(gl.maximum((free_low - begin + ROWS - 1) // ROWS, first), end)
    free_end = gl.minimum(gl.maximum((free_high - begin) // ROWS, free), end)
    return first, free, free_end, end


@gluon.jit
def forgotten(number):
    """The same numbers, of which the compiler knows nothing: what is computed from them is computed from here on."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [number], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def clean(tile, start, first, stop):
    """Clear rows outside first .. stop of a shared tile whose row 0 is `start`: they may hold another document's NaN.

    Every warpgroup that reads the tile writes it, each the same bits.
    """
    STEP: gl.constexpr = 16
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    for part in gl.static_range(tile.shape[0] // STEP):
        rows = tile.slice(part * STEP, STEP)
        at = start + part * STEP + gl.arange(0, STEP, gl.SliceLayout(1, layout))
        kept = (first <= at) & (at < stop)
        rows.store(gl.where(kept[:, None], rows.load(layout), 0.0))
    fence_async_shared()


@gluon.jit
def store_rows(target, batch, head, row, count, tile, stride_b, stride_t, stride_h):
    """Store the first `count` rows of a tile: behind them stands the next document."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    nth = gl.arange(0, tile.shape[0], gl.SliceLayout(1, layout))
    d = gl.arange(0, tile.shape[1], gl.SliceLayout(0, layout))
    head_at = target + batch.to(gl.int64) * stride_b + head.to(gl.int64) * stride_h
    at = head_at + ((row + nth).to(gl.int64) * stride_t)[:, None] + d[None, :]
    gl.store(at, gl.convert_layout(tile, layout), mask=(nth < count)[:, None])


@gluon.jit
def narrowed(tile, layout: gl.constexpr, dtype: gl.constexpr):
    """A float32 tile as the left operand of a product, two numbers to a register in one instruction."""
    tile = gl.convert_layout(tile, layout)
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [tile], dtype=gl.bfloat16, is_pure=True, pack=2
        )
    else:
        return gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [tile], dtype=gl.float16, is_pure=True, pack=2
        )
