"""Hopper's kernels, run as Python with numpy behind Gluon's language, against the oracle: on any machine, on small shapes."""

import importlib
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from sparse_attn import attention, parse
from sparse_attn.kernels.attention.geometry import Geometry, geometry
from sparse_attn.kernels.attention.hopper import keys_kernel
from sparse_attn.kernels.attention.hopper.blocks import own_block
from sparse_attn.kernels.attention.launch import Gradients, Inputs

from .emulated_values import value
from .gluon_emulator import Deadlock, Emulated, as_python, emulated

ROOM = "sparse_attn.kernels.attention.hopper"
FORWARD, KEYS, WIDE, COLUMNS, QUERIES = (
    importlib.import_module(f"{ROOM}.{n}")
    for n in ("forward", "backward_keys", "backward_keys_wide", "backward_columns", "backward_queries")
)
SUMS = importlib.import_module("sparse_attn.kernels.attention.column_sums")
MODULES = {
    SUMS: "column_sums_kernel",
    FORWARD: "forward_kernel",
    KEYS: "backward_keys_kernel",
    WIDE: "backward_keys_wide_kernel",
    COLUMNS: "backward_columns_kernel",
    QUERIES: "backward_queries_kernel",
}

CASES = [
    ("window(100)", 300, 330, True, None),
    ("window(600)", 300, 900, False, None),
    ("full()", 200, 900, True, None),
    ("window(20) | chunked(100)", 250, 250, True, None),
    ("window(30) | sinks(3) | strided(7)", 280, 300, True, None),
    ("window(30) | sinks(3) | strided(2)", 500, 500, False, None),
    ("window(20) | chunked(64) | sinks(9)", 260, 300, True, None),
    ("window(40) | anchors(24, block=64) | sinks(2)", 270, 290, True, None),
    ("window(200) | anchors(64, block=128) | sinks(2)", 270, 398, True, None),
    ("window(40)", 300, 340, True, ([0, 10, 10, 141, 300], [0, 10, 20, 170, 340])),
    ("window(30) | anchors(40, block=32) | sinks(3) | strided(9)", 300, 300, True, ([0, 90, 91, 300],) * 2),
    ("window(90) | anchors(64, block=256)", 300, 300, True, ([0, 10, 300],) * 2),
    ("window(90) | anchors(64, block=384)", 270, 390, True, None),
]
# Rows of extra keys that a warpgroup's queries have to themselves, or share; at one head dim.
ROWS_OF_EXTRA_KEYS = [
    ("window(70) | anchors(64, block=64)", 330, 394, True, None),
    ("window(70) | anchors(16, block=48)", 250, 250, True, None),
    ("window(40) | chunked(96) | anchors(64, block=96)", 250, 314, True, None),
    ("window(60) | chunked(150) | anchors(32, block=128)", 300, 300, True, None),
    ("window(60) | strided(9) | anchors(64, block=64)", 300, 300, False, None),
    ("window(60) | anchors(64, block=64)", 300, 300, True, ([0, 100, 300],) * 2),
]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-6)).item()


def key_gradients(inputs: Inputs, gradients: Gradients, where: Geometry, scale: float) -> Any:
    """dk and dv, by the kernels for this head dim; of wide heads without the columns' share, which is no kernel's of these."""
    if keys_kernel(inputs.q.shape[-1]) == "backward_keys_wide":
        return WIDE.backward_keys_wide(inputs, gradients, where, scale)
    dk, dv = KEYS.backward_keys(inputs, gradients, where, scale)
    COLUMNS.add_backward_columns(dk, dv, inputs, gradients, where, scale)
    return dk, dv


def rows_of_extra_keys(S: int, block: int, bounds: Any) -> int:
    return sum(-(-(stop - start) // block) for start, stop in pairwise(bounds[1] if bounds else (0, S)))


@pytest.mark.parametrize(
    ("text", "T", "S", "causal", "bounds", "D"),
    [(*c, D) for c in CASES for D in (64, 128, 256)] + [(*c, 64) for c in ROWS_OF_EXTRA_KEYS],
    ids=lambda x: x.replace(" ", "") if isinstance(x, str) else None,
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
        dk, dv = key_gradients(inputs, gradients, where, scale)
        found = {"out": (got, out), "lse": (got_lse, lse), "dq": (dq, leaves["q"].grad)}
        if D <= 128 or not where.columns:
            found |= {"dk": (dk, leaves["k"].grad), "dv": (dv, leaves["v"].grad)}
    errors = {name: error(*pair) for name, pair in found.items()}
    assert max(errors.values()) < 8e-3, errors


@pytest.mark.parametrize("D", [64, 128, 256])
@pytest.mark.parametrize("pattern", ["full()", "full() | anchors(16, block=128)"])
def test_logits_that_rise_from_tile_to_tile(pattern: str, D: int) -> None:
    """By 1 and 6 in base 2, which leaves a row's maximum as it was for a while or one tile, and by 20 and 200."""
    T, heads, steps = 400, 4, torch.tensor([1.0, 6.0, 20.0, 200.0])
    q, k, v = (torch.randn(1, T, heads, D) for _ in range(3))
    k[..., 0] = torch.arange(T, 0, -1)[:, None] / 64 * 0.6931471805599453 * D**0.5 / 16
    q[..., 0] = steps * 16
    extra = {"extra_k": torch.randn(1, 4, 16, heads, D), "extra_v": torch.randn(1, 4, 16, heads, D)}
    given = {"q": q, "k": k, "v": v} | (extra if "anchors" in pattern else {})
    given = {name: tensor.bfloat16() for name, tensor in given.items()}
    expected, expected_lse = attention(
        **{name: tensor.double() for name, tensor in given.items()},
        pattern=parse(pattern), implementation="reference", return_lse=True,
    )  # fmt: skip
    rows = [given[name].flatten(1, 2) for name in extra if name in given]
    where = geometry(parse(pattern), T, T, True, None, None)
    with emulated(MODULES, seed=D):
        out, lse = FORWARD.forward(Inputs(given["q"], given["k"], given["v"], *rows), where, D**-0.5)
    for head in range(heads):
        assert error(out[:, :, head], expected[:, :, head]) < 8e-3
        assert (lse[:, :, head] - expected_lse[:, :, head]).abs().max() < 1e-4 * expected_lse[:, :, head].abs().max()


def columns_oracle(
    tensors: tuple[torch.Tensor, ...], text: str, causal: bool, bounds: Any, scale: float
) -> tuple[torch.Tensor, ...]:
    """LSE, delta, and what the columns alone add to dk and dv, in float64: the keys beside the first term's interval."""
    q, k, v, d_out = (tensor.double() for tensor in tensors)
    group = q.shape[2] // k.shape[2]
    lse, delta = (torch.zeros(q.shape[:3], dtype=torch.float64) for _ in range(2))
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for q_edge, k_edge in zip(*(map(pairwise, bounds)), strict=True):
        rows, keys = slice(*q_edge), slice(*k_edge)
        T, S = q_edge[1] - q_edge[0], k_edge[1] - k_edge[0]
        kept, interval = (
            torch.as_tensor(parse(part).mask(T, S, causal=causal)) for part in (text, text.split(" | ")[0])
        )
        for head in range(q.shape[2]):
            own = q[:, rows, head], k[:, keys, head // group], v[:, keys, head // group], d_out[:, rows, head]
            logits = (scale * own[0] @ own[1].mT).masked_fill(~kept, -torch.inf)
            lse[:, rows, head] = logits.logsumexp(-1)
            weights, d_weights = logits.softmax(-1), own[3] @ own[2].mT
            delta[:, rows, head] = (weights * d_weights).sum(-1)
            d_logits = weights * (d_weights - delta[:, rows, head, None])
            beside = kept & ~interval
            dk[:, keys, head // group] += scale * (d_logits * beside).mT @ own[0]
            dv[:, keys, head // group] += (weights * beside).mT @ own[3]
    return lse, delta, dk, dv


SHARES = [
    ("window(30) | sinks(4)", (1000,), (1000,), True, 64),
    ("window(30) | sinks(4)", (500,), (700,), False, 64),
    ("window(60) | strided(3)", (700,), (900,), True, 64),
    ("window(60) | strided(4)", (700,), (700,), False, 64),
    ("window(50) | sinks(3) | strided(5)", (300, 7, 205), (400, 9, 205), True, 64),
    ("window(50) | sinks(3) | strided(6)", (300, 7, 0, 205), (430, 9, 3, 205), False, 64),
    ("chunked(90) | strided(2, offset=1)", (500,), (500,), True, 128),
    ("full() | sinks(4)", (200,), (200,), True, 64),
]


@pytest.mark.parametrize(
    ("text", "T", "S", "causal", "D"), SHARES, ids=[f"{c[0].replace(' ', '')}-{sum(c[1])}-{c[3]}" for c in SHARES]
)
def test_columns_alone_in_many_shares(
    text: str, T: tuple[int, ...], S: tuple[int, ...], causal: bool, D: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(COLUMNS, "_ROWS_A_SPLIT", 64)
    monkeypatch.setattr(COLUMNS, "_SHARE", 9.0)
    B, Hq, Hkv, scale = (1 if len(T) > 1 else 2), 4, 2, 0.11
    bounds = [0, *accumulate(T)], [0, *accumulate(S)]
    sizes = (sum(T), Hq), (sum(S), Hkv), (sum(S), Hkv), (sum(T), Hq)
    q, k, v, d_out = (torch.randn(B, n, heads, D).bfloat16() for n, heads in sizes)
    lse, delta, expected_dk, expected_dv = columns_oracle((q, k, v, d_out), text, causal, bounds, scale)
    where = geometry(parse(text), sum(T), sum(S), causal, *(map(tuple, bounds) if len(T) > 1 else (None, None)))
    numbers = [
        torch.nn.functional.pad(x.transpose(1, 2), (0, -sum(T) % 16), value=fill).float().contiguous()
        for x, fill in ((lse * 1.4426950408889634, torch.inf), (delta, 0.0))
    ]
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    with emulated(MODULES, seed=sum(S), programs=13):
        COLUMNS.add_backward_columns(dk, dv, Inputs(q, k, v), Gradients(d_out, *numbers), where, scale)
    if text.startswith("full"):
        assert not dk.any()
        assert not dv.any()
    else:
        assert error(dk, expected_dk) < 8e-3
        assert error(dv, expected_dv) < 8e-3


def test_warpgroups_that_take_turns_keep_to_their_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long walks in which copies land late and in any order: a barrier tells one phase from the next, not from the one after."""
    monkeypatch.setattr(COLUMNS, "_ROWS_A_SPLIT", 1 << 20)
    T, Hq, Hkv, scale = 1100, 3, 1, 0.11
    q, k, v, d_out = (torch.randn(1, T, heads, 64).bfloat16() for heads in (Hq, Hkv, Hkv, Hq))
    where = geometry(parse("window(20) | sinks(3)"), T, T, True, None, None)
    lse, delta, *expected = columns_oracle((q, k, v, d_out), "window(20) | sinks(3)", True, ([0, T], [0, T]), scale)
    numbers = [
        torch.nn.functional.pad(x.transpose(1, 2), (0, -T % 16), value=fill).float().contiguous()
        for x, fill in ((lse * 1.4426950408889634, torch.inf), (delta, 0.0))
    ]
    for seed in range(8):
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        with emulated(MODULES, seed=seed, programs=1):
            COLUMNS.add_backward_columns(dk, dv, Inputs(q, k, v), Gradients(d_out, *numbers), where, scale)
        assert max(map(error, (dk, dv), expected)) < 8e-3


@pytest.mark.parametrize("D", [64, 128, 256])
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
            return [out, lse, dq, *key_gradients(inputs, gradients, where, 0.1)]

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


@pytest.mark.parametrize(("total", "programs"), [(1024, 132), (700, 132), (131, 132), (264, 132), (5, 1), (40, 7)])
def test_programs_share_out_blocks_that_grow_shorter(total: int, programs: int) -> None:
    """Every block once; nobody has much more than others where the plain order gives the first of every turn most."""
    taken = []
    for program in range(programs):
        number = as_python(own_block, program, programs)
        taken.append([int(number(value(nth), value(total))) for nth in range(program, total, programs)])
    assert sorted(block for own in taken for block in own) == list(range(total))
    work = [sum(total - block for block in own) for own in taken]
    plain = [sum(total - block for block in range(program, total, programs)) for program in range(programs)]
    assert max(work) <= max(plain)
    if total > 2 * programs > 2:
        assert max(work) - sum(work) / programs < 0.6 * (max(plain) - sum(plain) / programs)
