"""Attention over chosen blocks against the oracle: tiles, heads, documents, cuts, extra keys, gradients, leaks."""

import zlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_attn import Anchors, Global, Pattern, Sinks, TopBlocks, Window, attention, parse
from sparse_attn.patterns.chosen import split_choice
from sparse_attn.testing.judge_attention import judge_attention
from tests.patterns.strategies import packed, patterns, windows

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Case:
    """One shape; its id in a report tells it whole. `H`: heads that choose."""

    pattern: str
    T: int
    S: int
    Hq: int = 4
    Hkv: int = 2
    H: int = 2
    D: int = 16
    B: int = 1
    dtype: str = "fp32"
    causal: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        form = "causal" if self.causal else "bidirectional"
        shape = f"B{self.B}-T{self.T}-S{self.S}-Hq{self.Hq}-Hkv{self.Hkv}-H{self.H}-D{self.D}-{self.dtype}"
        return "-".join([self.pattern.replace(" ", ""), form, shape, *self.options])

    def inputs(self) -> dict[str, Tensor]:
        torch.manual_seed(zlib.crc32(str(self).encode()))
        shapes = {
            "q": (self.B, self.T, self.Hq, self.D),
            "k": (self.B, self.S, self.Hkv, self.D),
            "v": (self.B, self.S, self.Hkv, self.D),
        }
        return {name: torch.randn(shape).to(DTYPES[self.dtype]) for name, shape in shapes.items()}

    def selected(self) -> Tensor:
        return random_blocks(parse(self.pattern), [(self.T, self.S)], self.H, self.B)


def random_blocks(pattern: Pattern, lengths: list[tuple[int, int]], heads: int, batch: int = 1) -> Tensor:
    """Distinct blocks of the whole sequence, later ones and the query's own among them, some rows short or empty."""
    choice = split_choice(pattern)
    assert choice is not None
    term, parts = choice.term, []
    for n_queries, n_keys in lengths:
        shape = (batch, term.tiles(n_queries, n_keys), heads, max(-(-n_keys // term.block), term.k))
        parts.append(torch.rand(shape).argsort(-1)[..., : term.k])
    selected = torch.cat(parts, 1)
    return selected.masked_fill(torch.rand(selected.shape) < 0.2, -1).int()


CASES = [
    Case("topblocks(3, block=8)", T=1, S=1),
    Case("topblocks(3, block=8)", T=1, S=100, B=3),
    Case("topblocks(2, block=64)", T=70, S=70),
    Case("topblocks(3, block=8) | window(12) | sinks(3)", T=65, S=101, Hq=8, H=2, dtype="bf16"),
    Case("topblocks(3, block=8) | window(12) | sinks(3)", T=65, S=101, Hq=8, H=8, dtype="bf16"),
    Case("topblocks(4, block=16, rows=16) | window(20)", T=130, S=150, Hq=6, Hkv=1, H=1, D=64, dtype="fp16"),
    Case("topblocks(4, block=16, rows=16) | window(20)", T=130, S=150, Hq=6, Hkv=3, H=6, D=7, dtype="fp64"),
    Case("topblocks(4, block=16, rows=10) | full()", T=50, S=50),  # every key is named before
    Case("topblocks(4, block=5, rows=7) | strided(6) | dilated(4, 3)", T=50, S=64, causal=False),
    Case("topblocks(4, block=5, rows=7).within(window(20)) | random(2, block=5)", T=64, S=64),
    Case("topblocks(4, block=5).within(window(20, right=9)) | global((3, 30))", T=64, S=64, causal=False),
    Case("topblocks(3, block=8) | chunked(10)", T=40, S=40, options={"scale": -0.7}),
]


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_named_shapes(case: Case, implementation: str) -> None:
    options = {"causal": case.causal, "selected": case.selected(), **case.options}
    judge_attention(case.inputs(), parse(case.pattern), implementation=implementation, **options)


@settings(max_examples=15)
@given(patterns(), st.data())
def test_chosen_blocks_beside_any_pattern(static: Pattern, data: st.DataObject) -> None:
    n_keys = data.draw(st.integers(1, 60), label="S")
    n_queries = data.draw(st.integers(1, n_keys), label="T")
    term: Pattern = TopBlocks(
        data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 8, 11])), data.draw(st.sampled_from([1, 5]))
    )
    pattern = static | (term.within(data.draw(windows)) if data.draw(st.booleans()) else term)
    heads, causal = data.draw(st.sampled_from([2, 4])), data.draw(st.booleans())
    case = Case(repr(pattern), n_queries, n_keys, H=heads, D=4)
    judge_attention(case.inputs(), pattern, causal=causal, implementation="cpu", selected=case.selected())


@settings(max_examples=8)
@given(packed(), st.booleans(), st.booleans())
def test_packed_documents(bounds: tuple[list[int], list[int]], causal: bool, with_anchors: bool) -> None:
    q_bounds, k_bounds = bounds
    pattern = Window(5) | Sinks(1) | TopBlocks(2, 8, rows=3)
    inputs = {name: torch.randn(q_bounds[-1] if name == "q" else k_bounds[-1], 2, 4) for name in "qkv"}
    lengths = [(q1 - q0, k1 - k0) for (q0, q1), (k0, k1) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True)]
    if with_anchors:
        pattern |= Anchors(3, block=7)
        rows = sum(-(-n_keys // 7) for _, n_keys in lengths)
        inputs |= {name: torch.randn(rows, 3, 2, 4) for name in ("extra_k", "extra_v")}
    options = {"cu_seqlens_q": q_bounds, "cu_seqlens_k": k_bounds, "causal": causal}
    selected = random_blocks(pattern, lengths, 2)[0]
    judge_attention(inputs, pattern, implementation="cpu", selected=selected, **options)


def test_static_parts_may_differ_between_heads_and_examples() -> None:
    case = Case("topblocks(3, block=8) | window(9)", T=50, S=60, Hq=6, Hkv=3, H=3, B=2)
    heads = [parse(f"{own} | topblocks(3, block=8)") for own in ("window(9)", "random(2, block=8)", "sinks(4)")]
    judge_attention(case.inputs(), heads, implementation="cpu", selected=case.selected())
    examples = Window(5) | Global([[3, 40], [20]]) | TopBlocks(3, 8)
    judge_attention(case.inputs(), examples, implementation="cpu", selected=case.selected())


def test_a_block_named_twice_counts_twice() -> None:
    case = Case("topblocks(2, block=8)", T=30, S=30)
    inputs, selected = case.inputs(), torch.zeros(1, 30, 2, 2, dtype=torch.int64)
    once = attention(**inputs, pattern=TopBlocks(2, 8), selected=selected[..., :1], return_lse=True)
    twice = attention(**inputs, pattern=TopBlocks(2, 8), selected=selected, return_lse=True)
    torch.testing.assert_close(twice[0], once[0])
    torch.testing.assert_close(twice[1], once[1] + torch.tensor(2.0).log())


def test_numbers_beyond_the_document_name_nothing() -> None:
    case = Case("topblocks(3, block=8)", T=30, S=30)
    inputs, selected = case.inputs(), torch.tensor([[1, 4, 99]]).expand(1, 30, 2, 3)
    for implementation in ("cpu", "reference"):
        got = attention(**inputs, pattern=TopBlocks(3, 8), selected=selected, implementation=implementation)
        assert torch.equal(
            got, attention(**inputs, pattern=TopBlocks(3, 8), selected=selected[..., :1], implementation=implementation)
        )


def test_gradients_against_finite_differences() -> None:
    for rows in (1, 3):
        case = Case(f"topblocks(2, block=2, rows={rows}) | window(2)", T=5, S=7, Hq=2, Hkv=1, H=1, D=3)
        leaves = [tensor.double().requires_grad_() for tensor in case.inputs().values()]
        selected = case.selected()

        def call(q: Tensor, k: Tensor, v: Tensor, case: Case = case, selected: Tensor = selected) -> Any:
            return attention(q, k, v, parse(case.pattern), selected=selected, return_lse=True)

        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


def test_gradients_repeat_to_the_bit() -> None:
    case = Case("topblocks(4, block=8) | window(9)", T=200, S=200)
    grads = []
    for _ in range(2):
        leaves = {name: tensor.requires_grad_() for name, tensor in case.inputs().items()}
        attention(**leaves, pattern=parse(case.pattern), selected=case.selected()).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves.values()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("implementation", ["cpu", pytest.param("reference", marks=pytest.mark.slow)])
def test_a_later_token_changes_nothing_before_it(implementation: str) -> None:
    """In the parallel form, in chunks and token by token, choosing by itself, exactly."""
    pattern = Window(3) | Sinks(1) | TopBlocks(2, 4)
    inputs = Case("future", T=36, S=36, D=4).inputs()

    def forms(x: dict[str, Tensor]) -> list[Tensor]:
        def upto(start: int, stop: int) -> Tensor:
            part = {"q": x["q"][:, start:stop], "k": x["k"][:, :stop], "v": x["v"][:, :stop]}
            return attention(**part, pattern=pattern, implementation=implementation)

        return [torch.cat([upto(t, min(t + step, 36)) for t in range(0, 36, step)], 1) for step in (36, 14, 1)]

    whole, chunked, decoded = before = forms(inputs)
    torch.testing.assert_close(chunked, whole, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(decoded, whole, rtol=2e-5, atol=2e-6)
    for t in (9, 32):
        changed = {name: torch.cat([x[:, :t], torch.randn_like(x[:, t:])], 1) for name, x in inputs.items()}
        for form, old in zip(forms(changed), before, strict=True):
            assert torch.equal(form[:, :t], old[:, :t])


def test_a_bad_document_reaches_no_other() -> None:
    pattern, bounds = Window(6) | TopBlocks(2, 8), [0, 40, 75, 120]
    inputs = {name: tensor[0] for name, tensor in Case("bad", T=120, S=120).inputs().items()}
    before = attention(**inputs, pattern=pattern, cu_seqlens_q=bounds)
    for tensor in inputs.values():
        tensor[40:75] = torch.nan
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    after = attention(**leaves, pattern=pattern, cu_seqlens_q=bounds)
    after.nan_to_num().sum().backward()
    for rows in (slice(0, 40), slice(75, 120)):
        assert torch.equal(after[rows], before[rows])
        assert all(torch.isfinite(leaf.grad[rows]).all() for leaf in leaves.values())


def test_every_block_chosen_is_dense_attention() -> None:
    inputs = Case("all", T=50, S=50, D=8).inputs()
    everything = torch.arange(7).expand(1, 50, 2, 7)
    for static in (None, Window(9) | Sinks(3)):
        pattern: Pattern = TopBlocks(7, 8) if static is None else static | TopBlocks(7, 8)
        got = attention(**inputs, pattern=pattern, selected=everything)
        torch.testing.assert_close(got, attention(**inputs, pattern=parse("full()")), rtol=2e-5, atol=2e-6)


def test_empty_sequences() -> None:
    for T, S in ((0, 0), (0, 9)):
        out = attention(**Case("empty", T=T, S=S).inputs(), pattern=Window(4) | TopBlocks(2))
        assert out.shape == (1, T, 4, 16)


WRONG = {
    "no term": ({"pattern": Window(4)}, "selected was given, but the pattern has no TopBlocks term"),
    "two terms": ({"pattern": TopBlocks(2) | TopBlocks(3)}, "at most one TopBlocks term, got"),
    "other heads": ({"pattern": [TopBlocks(2, 8) | Window(2), Window(4)]}, "all KV heads must have the same TopBlocks"),
    "bare head": ({"pattern": [TopBlocks(2, 8) | Window(2), TopBlocks(2, 8)]}, "each needs a static term beside TopBlocks"),
    "no tensor": ({"selected": [[1]]}, "selected must be an integer tensor .* got list"),
    "float": ({"selected": torch.zeros(1, 20, 2, 2)}, "selected must be an integer tensor .* got torch.float32"),
    "rows": ({"selected": torch.zeros(1, 3, 2, 2).int()}, r"selected must have shape \(1, 20, 2 or 4, K\) .* got \(1, 3, 2, 2\)"),
    "heads": ({"selected": torch.zeros(1, 20, 3, 2).int()}, r"selected must have shape \(1, 20, 2 or 4, K\)"),
    "too many": ({"selected": torch.zeros(1, 20, 2, 3).int()}, r"names 3 blocks for each query, more than topblocks\(2, 8\)"),
    "device": ({"selected": torch.zeros(1, 20, 2, 2, device="meta").int()}, "selected must be on q's device cpu, got meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name: str) -> None:
    changes, message = WRONG[name]
    arguments = {"pattern": TopBlocks(2, 8), "selected": torch.zeros(1, 20, 2, 2).int(), **changes}
    with pytest.raises(ValueError, match=message):
        attention(torch.randn(1, 20, 4, 8), torch.randn(1, 20, 2, 8), torch.randn(1, 20, 2, 8), **arguments)
