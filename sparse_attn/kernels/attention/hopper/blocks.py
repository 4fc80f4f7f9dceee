"""Helpers in Gluon: which queries and keys a block works on, and the portable helpers made available to Gluon kernels."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from .. import blocks as portable_blocks
from .. import interval as portable_interval

locate_block = gluon.jit(portable_blocks.locate_block.fn)
interval_bounds = gluon.jit(portable_interval.interval_bounds.fn)
query_bounds = gluon.jit(portable_interval.query_bounds.fn)


@gluon.jit
def locate_queries(
    nth, blocks, documents, parameters, n_blocks, n_heads, n_queries, n_keys, offset, left, right,
    CHUNKS: gl.constexpr, PACKED: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
):  # fmt: skip
    """Block nth of queries: batch, head, first position, end, row of the first, first key's token, the document's number
    of keys; and its tiles of keys: where they begin, how many there are, how many are masked at the left, where those
    masked at the right begin.

    Heads of one block come together, so that those of a group share its keys in the cache; late blocks, which have most
    keys under causal attention without a window, come first.
    """
    head = nth % n_heads
    block = n_blocks - 1 - nth // n_heads % n_blocks
    batch = nth // n_heads // n_blocks
    _, _, x, stop, q_start, k_start, own_keys, first_query = locate_block(
        block, blocks, documents, offset, offset, n_queries, n_keys, ROWS, PACKED, PACKED
    )
    begin, first_high = interval_bounds(x, own_keys, left, right, parameters, CHUNKS)
    last_low, end = interval_bounds(stop - 1, own_keys, left, right, parameters, CHUNKS)
    tiles = (end - begin + KEYS - 1) // KEYS
    masked_left = gl.minimum((last_low - begin + KEYS - 1) // KEYS, tiles)
    free_stop = gl.maximum((first_high - begin) // KEYS, masked_left)
    return batch, head, x, stop, q_start + x - first_query, k_start, own_keys, begin, tiles, masked_left, free_stop


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
def forgotten(number):
    """The same number, of which the compiler knows nothing: what is computed from it again was not kept in registers."""
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
