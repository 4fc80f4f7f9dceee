"""`attention` against the oracle: every implementation, random unions of terms, edge shapes, gradients of every input."""

import zlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_attn import Anchors, Global, Pattern, Random, Sinks, Window, attention, merge, parse
from sparse_attn.testing.judge_attention import judge_attention
from tests.patterns.strategies import packed, patterns

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Case:
    """One shape; its id in a report tells it whole."""

    pattern: str
    T: int
    S: int
    Hq: int = 4
    Hkv: int = 2
    D: int = 16
    B: int = 1
    dtype: str = "fp32"
    causal: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        form = "causal" if self.causal else "bidirectional"
        shape = f"{form}-B{self.B}-T{self.T}-S{self.S}-Hq{self.Hq}-Hkv{self.Hkv}-D{self.D}-{self.dtype}"
        return "-".join([self.pattern.replace(" ", ""), shape, *self.options])

    def inputs(self) -> dict[str, Tensor]:
        torch.manual_seed(zlib.crc32(str(self).encode()))
        shapes = {
            "q": (self.B, self.T, self.Hq, self.D),
            "k": (self.B, self.S, self.Hkv, self.D),
            "v": (self.B, self.S, self.Hkv, self.D),
        }
        return {name: torch.randn(shape).to(DTYPES[self.dtype]) for name, shape in shapes.items()}


PATTERN = "window(40) | sinks(3) | strided(16)"
CASES = [
    Case(PATTERN, T=1, S=1),
    Case(PATTERN, T=1, S=300),
    Case(PATTERN, T=65, S=200, Hq=8, dtype="bf16"),
    Case(PATTERN, T=257, S=257, D=64, dtype="bf16"),
    Case(PATTERN, T=300, S=300, D=96, dtype="fp16"),
    Case(PATTERN, T=130, S=130, D=128, dtype="fp32"),
    Case(PATTERN, T=70, S=131, D=256, dtype="bf16"),
    Case(PATTERN, T=90, S=90, D=7, dtype="fp64"),
    Case(PATTERN, T=520, S=600, Hq=4, Hkv=4, B=2),
    Case(PATTERN, T=520, S=600, Hq=6, Hkv=1, B=2, causal=False),
    Case("full()", T=300, S=700),
    Case("full()", T=300, S=700, causal=False, dtype="bf16"),
    Case("window(1)", T=300, S=300),
    Case("window(700)", T=300, S=300),
    Case("window(30, right=300)", T=600, S=600, causal=False),
    Case("chunked(100)", T=350, S=350),
    Case("chunked(100) | window(30)", T=350, S=350, causal=False),
    Case("strided(7, offset=6)", T=30, S=30),  # the first six queries see nothing
    Case("sinks(5)", T=600, S=600),
    Case("dilated(9, 5)", T=600, S=600),
    Case("dilated(None, 40) | window(40)", T=600, S=600, causal=False),
    Case("strided(20, rows='strided') | window(4)", T=600, S=600),
    Case("random(3, seed=2, block=32) | window(20) | sinks(2)", T=600, S=640),
    Case("random(3, block=32) | random(2, block=48) | window(20)", T=600, S=640, causal=False),
    Case("global((0, 77, 300, 301, 9999)) | window(9)", T=500, S=600),
    Case("global((0, 77, 300, 301)) | window(9)", T=600, S=600, causal=False, B=2),
    Case("(global((3, 500)) | random(4) | sinks(9) | strided(8)).within(window(90))", T=600, S=600),
    Case("full()", T=40, S=40, options={"scale": 0.31}),
    Case("full()", T=40, S=40, options={"scale": -2}),
    Case("full()", T=40, S=40, options={"scale": 0.0}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_named_shapes(case: Case) -> None:
    judge_attention(case.inputs(), parse(case.pattern), causal=case.causal, implementation="cpu", **case.options)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_oracle_serves_the_public_call_too(dtype: str) -> None:
    case = Case("strided(7, offset=6) | chunked(9)", T=60, S=70, dtype=dtype)
    judge_attention(case.inputs(), parse(case.pattern), implementation="reference")


@pytest.mark.parametrize("selected", [False, True], ids=["static", "chosen blocks"])
def test_the_oracles_keep_no_more_than_their_logits(selected: bool) -> None:
    """Values repeated for every query would be a head dim's times as much: 77 GiB a KV head at 9,000 tokens, D 128."""
    q, k, v = (torch.randn(1, 90, heads, 64, requires_grad=True) for heads in (4, 2, 2))
    pattern = "window(20) | topblocks(2, block=8)" if selected else "window(20) | sinks(3)"
    choice = torch.randint(11, (1, 90, 2, 2), dtype=torch.int32) if selected else None
    sizes = []

    def kept(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        attention(q, k, v, parse(pattern), selected=choice, implementation="reference")
    assert max(sizes) <= 90 * 90 * 2


@settings(max_examples=60, deadline=None)
@given(patterns(), st.data())
def test_random_unions_of_terms(pattern: Pattern, data: st.DataObject) -> None:
    n_keys = data.draw(st.integers(1, 90), label="S")
    n_queries = data.draw(st.integers(1, n_keys), label="T")
    group, hkv = data.draw(st.sampled_from([(1, 1), (2, 2), (3, 1), (1, 3)]), label="group, Hkv")
    case = Case(repr(pattern), n_queries, n_keys, group * hkv, hkv, B=data.draw(st.integers(1, 2), label="B"))
    judge_attention(case.inputs(), pattern, causal=data.draw(st.booleans(), label="causal"), implementation="cpu")


@settings(max_examples=40, deadline=None)
@given(patterns(), packed(), st.booleans(), st.booleans())
def test_packed_documents(
    pattern: Pattern, bounds: tuple[list[int], list[int]], causal: bool, with_anchors: bool
) -> None:
    q_bounds, k_bounds = bounds
    case = Case("packed", max(q_bounds[-1], 1), max(k_bounds[-1], 1))
    inputs = {name: tensor[0] for name, tensor in case.inputs().items()}
    inputs = {name: tensor[: q_bounds[-1] if name == "q" else k_bounds[-1]] for name, tensor in inputs.items()}
    if with_anchors:
        pattern |= Anchors(3, block=7)
        rows = sum(-(-(stop - start) // 7) for start, stop in pairwise(k_bounds))
        inputs |= {name: torch.randn(rows, 3, 2, 16) for name in ("extra_k", "extra_v")}
    judge_attention(inputs, pattern, causal=causal, implementation="cpu", cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds)


def test_one_pattern_per_kv_head() -> None:
    case = Case("per head", T=300, S=333, Hq=6, Hkv=3)
    heads = [Window(9) | Sinks(2), parse("random(2)"), Window(9) | Global([5])]
    judge_attention(case.inputs(), heads, implementation="cpu")


def test_global_positions_per_example_and_per_document() -> None:
    pattern = Window(5) | Global([[3, 40], [100]])
    judge_attention(Case("examples", T=200, S=300, B=2).inputs(), pattern, implementation="cpu")
    inputs = {name: tensor[0] for name, tensor in Case("documents", T=200, S=200).inputs().items()}
    judge_attention(inputs, pattern, implementation="cpu", cu_seqlens_q=[0, 50, 200])


@pytest.mark.parametrize(("T", "S"), [(1, 40), (70, 300), (300, 300)])
def test_extra_keys_stand_beside_the_pattern(T: int, S: int) -> None:
    pattern = Window(20) | Sinks(2) | Anchors(5, block=32)
    inputs = Case("extra", T=T, S=S, B=2).inputs()
    inputs |= {name: torch.randn(2, -(-S // 32), 5, 2, 16) for name in ("extra_k", "extra_v")}
    for causal in (True, False):
        judge_attention(inputs, pattern, causal=causal, implementation="cpu")


def test_two_halves_merge_into_the_whole_differentiably() -> None:
    inputs = {name: t.double() for name, t in Case("halves", T=90, S=120).inputs().items()}
    overlap_free = [Window(16), parse("strided(120, offset=3)")]  # position 3 is in no query's window: T starts at 30
    weight = torch.randn(1, 90, 4, 16, dtype=torch.float64)
    grads = []
    for merged in (True, False):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        if merged:
            parts = [attention(**leaves, pattern=own, return_lse=True) for own in overlap_free]
            out, lse = merge(*zip(*parts, strict=True))
        else:
            out, lse = attention(**leaves, pattern=overlap_free[0] | overlap_free[1], return_lse=True)
        ((out * weight).sum() + lse.sum()).backward()
        grads.append([out, lse, *(leaf.grad for leaf in leaves.values())])
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_gradients_against_finite_differences() -> None:
    inputs = Case("gradcheck", T=5, S=7, Hq=2, Hkv=1, D=3).inputs()
    leaves = [tensor.double().requires_grad_() for tensor in inputs.values()]
    extra = [torch.randn(1, 3, 2, 1, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    pattern = parse("window(2) | sinks(1) | random(1, block=2) | dilated(2, 3) | anchors(2, block=3)")

    def call(q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor, extra_v: Tensor) -> Any:
        return attention(q, k, v, pattern, extra_k=extra_k, extra_v=extra_v, return_lse=True)

    assert torch.autograd.gradcheck(call, [*leaves, *extra])


def test_decode_equals_prefill() -> None:
    pattern = parse("window(20) | sinks(2) | strided(16) | random(2, block=8) | dilated(3, 7)")
    inputs = Case("decode", T=100, S=100).inputs()
    whole = attention(**inputs, pattern=pattern)
    for S in (1, 2, 50, 100):
        last = {"q": inputs["q"][:, S - 1 : S], "k": inputs["k"][:, :S], "v": inputs["v"][:, :S]}
        torch.testing.assert_close(attention(**last, pattern=pattern)[:, 0], whole[:, S - 1], rtol=2e-5, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(patterns(), st.integers(1, 79))
def test_the_future_changes_nothing(pattern: Pattern, t: int) -> None:
    inputs = Case("future", T=80, S=80).inputs()
    before = attention(**inputs, pattern=pattern)[:, :t]
    changed = {name: torch.cat([x[:, :t], torch.randn_like(x[:, t:])], 1) for name, x in inputs.items()}
    assert torch.equal(attention(**changed, pattern=pattern)[:, :t], before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_document_reaches_no_other(bad: float) -> None:
    inputs = {name: tensor[0] for name, tensor in Case("bad", T=600, S=600).inputs().items()}
    pattern, bounds = parse("window(40) | sinks(2) | random(2)"), [0, 200, 400, 600]
    before = attention(**inputs, pattern=pattern, cu_seqlens_q=bounds)
    for tensor in inputs.values():
        tensor[200:400] = bad
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    after = attention(**leaves, pattern=pattern, cu_seqlens_q=bounds)
    after.nan_to_num().sum().backward()
    for rows in (slice(0, 200), slice(400, 600)):
        assert torch.equal(after[rows], before[rows])
        assert all(torch.isfinite(leaf.grad[rows]).all() for leaf in leaves.values())


def test_strided_and_transposed_inputs_are_read_right() -> None:
    inputs = Case("strides", T=64, S=64, B=2).inputs()
    expected = attention(**inputs, pattern=Window(9) | Sinks(2))
    strided = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in inputs.items()}
    padded = {name: torch.cat([x, x], -1)[..., : x.shape[-1]] for name, x in inputs.items()}
    for views in (strided, padded):
        torch.testing.assert_close(attention(**views, pattern=Window(9) | Sinks(2)), expected)


def test_only_asked_for_gradients_are_computed() -> None:
    inputs = Case("frozen", T=40, S=40).inputs()
    inputs["v"].requires_grad_()
    attention(**inputs, pattern=Window(9)).sum().backward()
    assert inputs["q"].grad is None
    assert inputs["v"].grad is not None


@pytest.mark.parametrize("T", [8, 200])
def test_gradients_under_autocast(T: int) -> None:
    leaves = [tensor.requires_grad_() for tensor in Case("autocast", T=T, S=T).inputs().values()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention(*leaves, Window(8) | Sinks(2)).sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_threads_keep_the_callers_modes(mode: Any) -> None:
    inputs = Case("modes", T=600, S=600).inputs()
    expected = attention(**inputs, pattern=Window(40) | Sinks(2))
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention(**inputs, pattern=Window(40) | Sinks(2)), expected)


def test_empty_sequences() -> None:
    for T, S in ((0, 0), (0, 9)):
        inputs = Case("empty", T=T, S=S).inputs()
        out, lse = attention(**inputs, pattern=Window(4) | Random(2), return_lse=True)
        assert out.shape == (1, T, 4, 16)
        assert lse.shape == (1, T, 4)
