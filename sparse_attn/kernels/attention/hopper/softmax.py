"""One step of the running softmax on Hopper, as a warpgroup's threads hold a tile of logits."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def by_thread(tile):
    """``[ROWS, KEYS]`` as ``[ROWS, KEYS / 8, 4, 2]``: of a row each of 4 threads holds 2 neighbours of every 8 numbers."""
    return tile.reshape([tile.shape[0], tile.shape[1] // 8, 4, 2])


@gluon.jit
def sums_by_thread(weights):
    """Each thread's sum of a row's weights, ``[ROWS, 4]``: threads meet once, after the last tile."""
    return gl.sum(gl.sum(by_thread(weights), 3), 1)


@gluon.jit
def take_powers(logits, top, scale, MASKED: gl.constexpr):
    """A tile's weights, by what earlier ones fade, and the new maximum."""
    highest = gl.max(gl.max(gl.max(by_thread(logits), 3), 1), 1)  # pairs first: a shorter chain
    new_top = gl.maximum(top, gl.convert_layout(highest, top.type.layout) * scale)
    base = gl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top  # -inf minus -inf would be NaN
    return gl.exp2(logits * scale - base[:, None]), gl.exp2(top - base), new_top
