"""How a tile of results leaves a warpgroup on Hopper."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma

from .blocks import store_rows


@gluon.jit
def store_result(
    result, tile, target, target_rows, batch, head, row, count, stride_b, stride_t, stride_h,
    PACKED: gl.constexpr, APART: gl.constexpr,
):  # fmt: skip
    """Store `count` rows of a result, at most a tile, by the copy engine out of a shared tile.

    APART: nothing else uses that tile, so that the copy may be under way when this returns. Otherwise the tile may be
    written again then.
    """
    ROWS: gl.constexpr = result.shape[0]
    D: gl.constexpr = result.shape[1]
    if APART:
        tma.store_wait(0)
    gl.thread_barrier()  # the tile has been read by every warp
    tile.store(result)
    fence_async_shared()
    if PACKED and count < ROWS:  # the next document's rows follow: its warpgroup stores them
        by_row: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
        store_rows(target_rows, batch, head, row, count, tile.load(by_row), stride_b, stride_t, stride_h)
    else:
        tma.async_copy_shared_to_global(target, [batch, head, row, 0], tile.reshape([1, 1, ROWS, D]))
    if not APART:
        tma.store_wait(0)
        gl.thread_barrier()
