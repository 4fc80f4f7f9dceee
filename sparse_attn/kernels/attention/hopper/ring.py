"""The ring through which Hopper's kernels are handed tiles of keys and values: its slots, and who may touch them when.

A slot's tile is `ready` when it has arrived and `empty` when every consumer has let it go; keys and values have barriers of their
own.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """So many barriers, each completed by so many arrivals."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for nth in gl.static_range(COUNT):
        mbarrier.init(made.index(nth), count=ARRIVALS)
    return made


@gluon.jit
def odd_turn(number, SLOTS: gl.constexpr):
    """1 if slot number `number` in turn belongs to an odd turn around the ring, 0 if to an even one: its barrier's phase.

    Warpgroups of dq divide instead: from one bit the compiler makes slots in other registers, and moves them in every step.
    """
    if SLOTS & (SLOTS - 1) == 0:
        return (number & SLOTS) // SLOTS  # one bit, without what a division does for numbers below 0
    else:
        return number // SLOTS & 1


@gluon.jit
def make_ring(
    dtype: gl.constexpr, SLOTS: gl.constexpr, V_SLOTS: gl.constexpr, KEYS: gl.constexpr, D: gl.constexpr,
    CONSUMERS: gl.constexpr,
):  # fmt: skip
    """Tiles of keys and of values, and the barriers of both: ready, empty."""
    flat: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, D], dtype)
    k_tiles = gl.allocate_shared_memory(dtype, [SLOTS, KEYS, D], flat)
    v_tiles = gl.allocate_shared_memory(dtype, [V_SLOTS, KEYS, D], flat)
    k_ready = barriers(SLOTS, 1)
    k_empty = barriers(SLOTS, CONSUMERS)
    v_ready = barriers(V_SLOTS, 1)
    v_empty = barriers(V_SLOTS, CONSUMERS)
    return k_tiles, v_tiles, k_ready, k_empty, v_ready, v_empty
