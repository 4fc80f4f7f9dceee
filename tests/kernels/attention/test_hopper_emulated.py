"""Hopper's kernels, run as Python with numpy behind Gluon's language, against the oracle: on any machine, on small shapes."""

import importlib
from itertools import pairwise
from typing import Any

import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from sparse_attn import attention, parse
from sparse_attn.kernels.attention.geometry import geometry
from sparse_attn.kernels.attention.launch import Gradients, Inputs

from .gluon_emulator import Deadlock, Emulated, emulated

ROOM = "sparse_attn.kernels.attention.hopper"
FORWARD, KEYS, QUERIES = (
    importlib.import_module(f"{ROOM}.{n}") for n in ("forward", "backward_keys", "backward_queries")
)
MODULES = {FORWARD: "forward_kernel", KEYS: "backward_keys_kernel", QUERIES: "backward_queries_kernel"}

CASES = [
    ("window(100)", 300, 330, True, None),
    ("window(600)", 300, 900, False, None),
    ("full()", 200, 900, True, None),
    ("window(20) | chunked(100)", 250, 250, True, None),
    ("window(30) | sinks(3) | strided(7)", 280, 300, True, None),
    ("window(30) | sinks(3) | strided(2)", 500, 500, False, None),
    ("window(20) | chunked(64) | sinks(9)", 260, 300, True, None),
    ("window(40) | anchors(24, block=64) | sinks(2)", 270, 290, True, None),
    ("window(40)", 300, 340, True, ([0, 10, 10, 141, 300], [0, 10, 20, 170, 340])),
    ("window(30) | anchors(40, block=32) | sinks(3) | strided(9)", 300, 300, True, ([0, 90, 91, 300],) * 2),
]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-6)).item()


def rows_of_extra_keys(S: int, block: int, bounds: Any) -> int:
    return sum(-(-(stop - start) // block) for start, stop in pairwise(bounds[1] if bounds else (0, S)))


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize(
    ("text", "T", "S", "causal", "bounds"), CASES, ids=[f"{c[0].replace(' ', '')}-{c[1]}" for c in CASES]
)
def test_against_the_oracle(text: str, T: int, S: int, causal: bool, bounds: Any, D: int) -> None:
    pattern, Hq, Hkv = parse(text), 2, 1
    sizes = {"q": (T, Hq, D), "k": (S, Hkv, D), "v": (S, Hkv, D)}
    if pattern.extra_keys:
        block = next(term.block for term in pattern.terms if hasattr(term, "r"))  # type: ignore[attr-defined]
        rows = rows_of_extra_keys(S, block, bounds)
        sizes |= dict.fromkeys(("extra_k", "extra_v"), (rows, pattern.extra_keys, Hkv, D))  # type: ignore[arg-type]
    given = {name: torch.randn(1, *size).bfloat16() for name, size in sizes.items()}
    leaves: Any = {name: tensor.double().requires_grad_() for name, tensor in given.items()}
    lengths: Any = {} if bounds is None else dict(zip(("cu_seqlens_q", "cu_seqlens_k"), bounds, strict=True))
    whole = {name: tensor[0] if bounds else tensor for name, tensor in leaves.items()}
    out, lse = attention(
        **whole, pattern=pattern, causal=causal, implementation="reference", return_lse=True, **lengths
    )  # fmt: skip
    d_out = torch.randn(out.shape, dtype=torch.float64).bfloat16()
    out.backward(d_out.double())

    where = geometry(pattern, T, S, causal, *(map(tuple, bounds) if bounds else (None, None)))
    extra = [given[name].flatten(1, 2) if name in given else None for name in ("extra_k", "extra_v")]
    inputs = Inputs(given["q"], given["k"], given["v"], *extra)
    scale = D**-0.5
    with emulated(MODULES, seed=T + D):
        got, got_lse = FORWARD.forward(inputs, where, scale)
        lse, out, d_out = (x.detach()[None] if bounds else x.detach() for x in (lse, out, d_out))
        delta = (out * d_out.double()).sum(-1).transpose(1, 2)
        lse2 = (lse * 1.4426950408889634).transpose(1, 2)
        rows = [torch.nn.functional.pad(x, (0, -T % 16), value=fill) for x, fill in ((lse2, torch.inf), (delta, 0.0))]
        gradients = Gradients(d_out, *(x.float().contiguous() for x in rows))
        dq = QUERIES.backward_queries(inputs, gradients, where, scale)
        found = {"out": (got, out), "lse": (got_lse, lse), "dq": (dq, leaves["q"].grad)}
        if not (where.columns or where.anchors):  # others' kernels add to these
            dk, dv = KEYS.backward_keys(inputs, gradients, where, scale)
            found |= {"dk": (dk, leaves["k"].grad), "dv": (dv, leaves["v"].grad)}
    errors = {name: error(*pair) for name, pair in found.items()}
    assert max(errors.values()) < 8e-3, errors


@pytest.mark.parametrize("D", [64, 128])
def test_a_bad_document_reaches_no_other(D: int) -> None:
    bounds = (0, 90, 200, 330)
    where = geometry(
        parse("window(40) | sinks(3) | strided(9) | anchors(24, block=32)"), 330, 330, True, bounds, bounds
    )
    extra_rows = (0, 3 * 24, 7 * 24, 12 * 24)
    sizes = ((330, 2), (330, 1), (330, 1), (extra_rows[-1], 1), (extra_rows[-1], 1))
    tensors = [torch.randn(1, *size, D).bfloat16() for size in sizes]
    d_out, lse2, delta = torch.randn(1, 330, 2, D).bfloat16(), torch.randn(1, 2, 336) + 9.0, torch.randn(1, 2, 336)

    def run() -> list[torch.Tensor]:
        inputs, gradients = Inputs(*tensors), Gradients(d_out, lse2, delta)
        with emulated(MODULES, seed=D):
            out, lse = FORWARD.forward(inputs, where, 0.1)
            dq = QUERIES.backward_queries(inputs, gradients, where, 0.1)
            return [out, lse, dq, *KEYS.backward_keys(inputs, gradients, where, 0.1)]

    before = run()
    for tensor, edges in zip((*tensors, d_out), (bounds, bounds, bounds, extra_rows, extra_rows, bounds), strict=True):
        tensor[:, edges[1] : edges[2]] = float("nan")
    lse2[:, :, 90:200] = delta[:, :, 90:200] = float("nan")
    for good, now in zip(before, run(), strict=True):
        for rows in (slice(0, 90), slice(200, 330)):
            assert good[:, rows].isfinite().all()
            assert torch.equal(good[:, rows], now[:, rows])


@gluon.jit
def _give(barrier, tile, answer):
    tile.store(gl.full([4], 1.0, gl.float32))
    if answer:
        mbarrier.arrive(barrier.index(0))


@gluon.jit
def _take(barrier, tile, out):
    mbarrier.wait(barrier.index(0), 0)
    gl.store(out + gl.arange(0, 4), tile.load(None))


@gluon.jit
def small_kernel(out, answer: gl.constexpr):
    barrier = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    tile = gl.allocate_shared_memory(gl.float32, [4], None)
    mbarrier.init(barrier.index(0), count=1)
    gl.warp_specialize([(_take, (barrier, tile, out)), (_give, (barrier, tile, answer))], [4], [24])


@pytest.mark.parametrize("seed", range(4))
def test_the_emulator_tells_a_barrier_that_nobody_completes(seed: int) -> None:
    out = torch.zeros(4)
    Emulated(small_kernel, seed)[(1,)](out, True, num_warps=4)
    assert out.tolist() == [1.0] * 4
    with pytest.raises(Deadlock, match="1 partitions wait"):
        Emulated(small_kernel, seed)[(1,)](out, False, num_warps=4)
    with pytest.raises(AssertionError, match="leaves its tensor"):
        Emulated(small_kernel, seed)[(1,)](torch.zeros(3), True, num_warps=4)
