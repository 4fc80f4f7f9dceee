"""One step of the running softmax on Hopper, as a warpgroup's threads hold a tile of logits.

A row of 64 numbers lies in four threads of a warp. A row's maximum is raised only when a tile exceeds it by more than SLACK in
base 2, and sums fade only then (conditional rescaling, as in FlashAttention-4): weights grow up to 2^SLACK, which float32
sums and 16-bit weights hold as well as those up to 1, and results are the same but for rounding. So most tiles ask for neither
the four threads' common maximum nor a correction: a warp takes a branch together, which Gluon has no words for, hence assembly.
"""

import struct

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

SLACK = 8.0
_SLACK = "0f" + struct.pack(">f", SLACK).hex()

# Of two rows: highest logits of a thread $6 $7, maxima until now $8 $9, scale $10; maxima from now on $0 $1, by what earlier
# weights fade $2 $3, and whether those of any of the warp's rows do $4 $5.
_RAISED = gl.constexpr(
    f"""// raised
    {{
    .reg .pred any, own;
    .reg .f32 a, b;
    neg.f32 a, $8;
    neg.f32 b, $9;
    fma.rn.f32 a, $6, $10, a;
    fma.rn.f32 b, $7, $11, b;
    max.f32 a, a, b;
    setp.gt.f32 any, a, {_SLACK};
    vote.sync.any.pred any, any, 0xffffffff;
    mov.f32 $0, $8;
    mov.f32 $1, $9;
    mov.f32 $2, 0f3F800000;
    mov.f32 $3, 0f3F800000;
    selp.s32 $4, 1, 0, any;
    mov.b32 $5, $4;
    @!any bra.uni DONE;
    """
    + "".join(
        f"""
    shfl.sync.bfly.b32 b, ${6 + row}, 2, 0x1f, 0xffffffff;
    max.f32 a, ${6 + row}, b;
    shfl.sync.bfly.b32 b, a, 1, 0x1f, 0xffffffff;
    max.f32 a, a, b;
    mul.f32 a, a, ${10 + row};
    add.f32 b, ${8 + row}, {_SLACK};
    setp.gt.f32 own, a, b;
    sub.f32 b, ${8 + row}, a;
    ex2.approx.ftz.f32 b, b;
    @own mov.f32 ${0 + row}, a;
    @own mov.f32 ${2 + row}, b;
    """
        for row in range(2)
    )
    + "DONE:\n}"
)
_RAISED_CONSTRAINTS = gl.constexpr("=&f,=&f,=&f,=&f,=&r,=&r,f,f,f,f,f,f")

# 32 sums of a thread, times by what they fade, unless no row of the warp does.
_FADED = gl.constexpr(
    """// faded
    {
    .reg .pred none;
    setp.eq.s32 none, $96, 0;
    @none bra.uni DONE;
    """
    + "".join(f"mul.f32 ${n}, ${n}, ${n + 64};\n" for n in range(32))
    + "DONE:\n}"
)
_FADED_CONSTRAINTS = gl.constexpr(",".join(["=f"] * 32 + [str(n) for n in range(32)] + ["f"] * 32 + ["r"] * 32))

# The numbers as they are, behind a branch that asks for them and is never taken.
_AWAITED = gl.constexpr(
    """// awaited
    {
    .reg .pred huge;
    setp.gt.f32 huge, $0, 0f7F000000;
    setp.gt.or.f32 huge, $1, 0f7F000000, huge;
    @huge nanosleep.u32 1;
    }"""
)


@gluon.jit
def by_thread(tile):
    """``[ROWS, KEYS]`` as ``[ROWS, KEYS / 8, 4, 2]``: of a row each of 4 threads holds 2 neighbours of every 8 numbers."""
    return tile.reshape([tile.shape[0], tile.shape[1] // 8, 4, 2])


@gluon.jit
def sums_by_thread(weights):
    """Each thread's sum of a row's weights, ``[ROWS, 4]``: threads meet once, after the last tile."""
    return gl.sum(gl.sum(by_thread(weights), 3), 1)


@gluon.jit
def faded(acc, fade, grown):
    """Sums ``[ROWS, D]`` times what `take_powers` says that they fade by."""
    tile = by_thread(acc)
    like: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(3, tile.type.layout))
    fade = gl.convert_layout(fade, like)[:, None, :, None]
    grown = gl.convert_layout(grown, like)[:, None, :, None]
    tile = gl.inline_asm_elementwise(
        _FADED, _FADED_CONSTRAINTS, [tile, fade, grown], dtype=gl.float32, is_pure=True, pack=32
    )
    return gl.convert_layout(tile.reshape(acc.shape), acc.type.layout)


@gluon.jit
def added(total, fade, own):
    """Sums by thread of what came before, faded, and of a tile; narrower tiles' layouts have other names."""
    return gl.convert_layout(total, own.type.layout) * gl.convert_layout(fade, own.type.layout) + own


@gluon.jit
def awaited(numbers):
    """The same numbers, two a thread, which the compiler must have before it waits for a product: else it waits first, and takes
    the powers that the product should hide when nothing hides them."""
    return gl.inline_asm_elementwise(_AWAITED, "=f,=f,0,1", [numbers], dtype=gl.float32, is_pure=False, pack=2)


@gluon.jit
def take_powers(logits, top, scale, MASKED: gl.constexpr):
    """A tile's weights, by what earlier ones fade, whether any of a warp's do, and the maximum from now on.

    MASKED: a row may not have seen a key yet.
    """
    tile = by_thread(logits)
    highest = gl.max(gl.max(tile, 3), 1)  # pairs first: a shorter chain
    top, fade, grown = gl.inline_asm_elementwise(
        _RAISED, _RAISED_CONSTRAINTS, [highest, gl.convert_layout(top, highest.type.layout), scale],
        dtype=(gl.float32, gl.float32, gl.int32), is_pure=False, pack=2,
    )  # fmt: skip
    return _powers(logits, top, scale, MASKED), fade, grown, top


@gluon.jit
def first_powers(logits, scale, MASKED: gl.constexpr):
    """The weights of a row's first tile, and its maximum, which each of four threads holds, ``[ROWS, 4]``."""
    highest = gl.max(gl.max(by_thread(logits), 3), 1)
    top = gl.max(highest, 1)[:, None] * scale + gl.zeros_like(highest)
    return _powers(logits, top, scale, MASKED), top


@gluon.jit
def _powers(logits, top, scale, MASKED: gl.constexpr):
    base = gl.where(top == float("-inf"), 0.0, top) if MASKED else top  # -inf minus -inf would be NaN
    weights = gl.exp2(by_thread(logits) * scale - base[:, None, :, None])
    return gl.convert_layout(weights.reshape(logits.shape), logits.type.layout)
