"""The kernels of chosen blocks against a dense mask: in Triton's interpreter on a CPU, for real where there is a GPU."""

import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_attn import attention, parse
from sparse_attn.kernels.selected import fused_selected_attention
from sparse_attn.patterns.chosen import split_choice
from sparse_attn.testing.error_budget import assert_within_budget
from sparse_attn.testing.judge_attention import judge_attention

from .dense_choice import dense_attention, draw_choice

# The interpreter counts with numpy, and says so: rows past the end divide 0 by 0, and are not stored.
pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning",
    "ignore:divide by zero:RuntimeWarning",
    "ignore:overflow encountered:RuntimeWarning",
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning",
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Case:
    pattern: str
    T: int
    S: int
    Hq: int = 2
    Hkv: int = 1
    D: int = 16
    B: int = 1
    H: int | None = None  # choosing heads; None: Hkv
    causal: bool = True
    scale: float = 0.25
    q_bounds: tuple[int, ...] | None = None
    k_bounds: tuple[int, ...] | None = None

    def __str__(self) -> str:
        form = "causal" if self.causal else "bidirectional"
        packed = "-packed" if self.q_bounds else ""
        sizes = f"T{self.T}-S{self.S}-Hq{self.Hq}-Hkv{self.Hkv}-H{self.H or self.Hkv}-D{self.D}-B{self.B}"
        return f"{self.pattern.replace(' ', '')}-{form}-{sizes}{packed}"


SEVERAL = {"q_bounds": (0, 7, 7, 20, 25), "k_bounds": (0, 7, 20, 60, 65)}
QUICK = [
    Case("window(9) | topblocks(3, block=16)", T=20, S=60),
    Case("window(9) | sinks(3) | topblocks(3, block=16, rows=16)", T=20, S=60),
    Case("topblocks(3, block=8)", T=16, S=16, B=2, scale=-0.3),
    Case("topblocks(2, block=80)", T=16, S=100, scale=0.0, Hq=1),
    Case("topblocks(3, block=16, rows=16) | random(1, block=16) | global((0, 30)) | chunked(20)", T=20, S=40, Hq=1),
    Case("window(9) | sinks(2) | topblocks(3, block=16)", T=25, S=65, **SEVERAL),
]
MORE = [
    Case("window(9) | sinks(3) | topblocks(3, block=16)", T=18, S=50, Hq=6, Hkv=2),
    Case("window(9) | topblocks(2, block=12, rows=24)", T=30, S=40, Hq=3, B=2, scale=-0.3),
    Case("window(9) | topblocks(2, block=32)", T=1, S=60, Hq=4, Hkv=2),
    Case("window(9) | topblocks(3, block=16)", T=16, S=40, causal=False),
    Case("window(9) | topblocks(3, block=16, rows=8)", T=10, S=40, causal=False),
    Case("topblocks(2, block=12) | sinks(2) | strided(7)", T=17, S=40, D=24, Hq=1),
    Case("topblocks(2, block=80, rows=5) | window(3)", T=7, S=100),
    Case("topblocks(3, block=16).within(window(30)) | random(1, block=16) | dilated(5, 3)", T=20, S=50, Hq=1),
    Case("window(9) | sinks(2) | topblocks(3, block=16, rows=8)", T=25, S=65, causal=False, **SEVERAL),
]


def inputs_of(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {"q": (case.T, case.Hq), "k": (case.S, case.Hkv), "v": (case.S, case.Hkv)}
    return {name: torch.randn(case.B, n, heads, case.D, device=DEVICE).to(dtype) for name, (n, heads) in shapes.items()}


def choice_of(case: Case, k: int | None = None) -> Tensor:
    pattern = parse(case.pattern)
    choice = split_choice(pattern)
    assert choice is not None
    bounds = case.q_bounds or (0, case.T), case.k_bounds or (0, case.S)
    made = draw_choice(pattern, (case.B, case.T, case.H or case.Hkv), k or choice.term.k, *bounds)
    return made.to(DEVICE)


def judge(case: Case, dtype: torch.dtype = torch.float32, gradients: bool = True) -> None:
    inputs, selected = inputs_of(case, dtype), choice_of(case)
    weights = torch.randn(case.B, case.T, case.Hq, case.D, dtype=torch.float64, device=DEVICE)
    lse_weights = torch.randn(case.B, case.T, case.Hq, dtype=torch.float64, device=DEVICE)
    bounds = case.q_bounds or (0, case.T), case.k_bounds or (0, case.S)

    def run(tensors: dict[str, Tensor], fused: bool) -> dict[str, Tensor]:
        leaves = {name: x.detach().clone().requires_grad_(gradients) for name, x in tensors.items()}
        if fused:
            lengths: Any = [None if x is None else torch.tensor(x) for x in (case.q_bounds, case.k_bounds)]
            out, lse = fused_selected_attention(
                *leaves.values(), selected, case.pattern, causal=case.causal, scale=case.scale,
                cu_seqlens_q=lengths[0], cu_seqlens_k=lengths[1],
            )  # fmt: skip
        else:
            out, lse = dense_attention(
                *leaves.values(), selected, parse(case.pattern), case.causal, case.scale, *bounds
            )
        found = {"lse": lse.detach()}
        seen = torch.isfinite(lse)
        out = torch.where(seen[..., None], out, 0.0)
        found["out"] = out.detach()
        if gradients:
            loss = (out.double() * weights).sum() + (torch.where(seen, lse, 0.0).double() * lse_weights).sum()
            loss.backward()
            found |= {"d" + name: x.grad for name, x in leaves.items() if x.grad is not None}
        return found

    oracle = run({name: x.double() for name, x in inputs.items()}, False)
    plain, got = run(inputs, False), run(inputs, True)
    assert got.keys() == oracle.keys()
    for name in oracle:
        clean = [torch.nan_to_num(x[name], nan=0.0, neginf=float("-inf")) for x in (oracle, plain)]
        assert_within_budget(name, got[name], *clean)


CASES = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_named_shapes(case: Case) -> None:
    judge(case)


def test_each_query_head_may_choose_for_itself() -> None:
    for text in ("window(9) | topblocks(3, block=16)", "window(9) | topblocks(3, block=16, rows=16)"):
        judge(Case(text, T=16, S=40, H=2), gradients=False)


def test_through_attention_with_static_keys_under_one_softmax() -> None:
    case = Case("window(9) | sinks(2) | topblocks(3, block=16)", T=16, S=40)
    judge_attention(inputs_of(case), parse(case.pattern), implementation="triton", selected=choice_of(case))


@pytest.mark.slow
def test_through_attention_with_extra_keys_too() -> None:
    case = Case("", T=20, S=60, Hq=4, Hkv=2)
    tiles = replace(case, pattern="window(9) | anchors(3, block=16) | topblocks(3, block=16, rows=16)")
    extra = {name: torch.randn(1, 4, 3, 2, 16, device=DEVICE) for name in ("extra_k", "extra_v")}
    judge_attention(inputs_of(tiles) | extra, parse(tiles.pattern), implementation="triton", selected=choice_of(tiles))


def test_heads_with_patterns_of_their_own() -> None:
    case = Case("window(9) | topblocks(2, block=16, rows=8)", T=16, S=40, Hq=4, Hkv=2)
    patterns = [parse(case.pattern), parse("window(3) | sinks(2) | topblocks(2, block=16, rows=8)")]
    inputs, selected = inputs_of(case), choice_of(case)
    whole = attention(**inputs, pattern=patterns, selected=selected, implementation="triton")
    for head, pattern in enumerate(patterns):
        own = {"q": inputs["q"][:, :, 2 * head : 2 * head + 2]} | {x: inputs[x][:, :, head : head + 1] for x in "kv"}
        one = attention(**own, pattern=pattern, selected=selected[:, :, head : head + 1], implementation="triton")
        assert torch.equal(whole[:, :, 2 * head : 2 * head + 2], one)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_block_named_twice_counts_twice_and_no_block_not_at_all(rows: int) -> None:
    pattern = parse(f"window(4) | topblocks(4, block=8, rows={rows})")
    inputs = inputs_of(Case("", T=17, S=40))
    n_tiles = 17 if rows == 1 else 3
    selected = torch.tensor([1, 0, 1, 77], device=DEVICE).expand(1, n_tiles, 1, 4)
    results = []
    for implementation in ("triton", "reference"):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        out = attention(**leaves, pattern=pattern, selected=selected, implementation=implementation)
        out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves.values())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_spans_of_queries_make_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["sparse_attn.kernels.selected.forward_blocks"]
    monkeypatch.setattr(module, "SPAN_BYTES", 1)
    monkeypatch.setattr(module, "LEAST_SPAN", 16)
    judge(Case("window(9) | topblocks(2, block=16)", T=20, S=40, Hq=1))


def test_a_bad_document_reaches_no_other() -> None:
    case = Case("window(3) | topblocks(2, block=8)", T=36, S=36, q_bounds=(0, 10, 20, 36), k_bounds=(0, 10, 20, 36))
    inputs, selected = inputs_of(case), choice_of(case)
    bounds = torch.tensor(case.q_bounds)

    def run(**tensors: Tensor) -> Tensor:
        return fused_selected_attention(
            **tensors,
            selected=selected,
            patterns=case.pattern,
            causal=True,
            scale=0.25,
            cu_seqlens_q=bounds,
            cu_seqlens_k=bounds,
        )[0]

    before = run(**inputs)
    for tensor in inputs.values():
        tensor[:, 10:20] = float("nan")
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    after = run(**leaves)
    after.nan_to_num().sum().backward()
    for rows in (slice(0, 10), slice(20, 36)):
        assert torch.equal(after[:, rows], before[:, rows])
        assert all(torch.isfinite(leaf.grad[:, rows]).all() for leaf in leaves.values() if leaf.grad is not None)


@pytest.mark.parametrize("rows", [1, 8])
def test_the_future_changes_nothing_before_it(rows: int) -> None:
    case = Case(f"window(3) | topblocks(3, block=8, rows={rows})", T=24, S=24)
    inputs, selected = inputs_of(case), choice_of(case)
    before = attention(**inputs, pattern=parse(case.pattern), selected=selected, implementation="triton")
    for tensor in inputs.values():
        tensor[:, 13:] += 1.0
    after = attention(**inputs, pattern=parse(case.pattern), selected=selected, implementation="triton")
    assert torch.equal(after[:, :13], before[:, :13])


def test_what_the_kernels_do_not_serve_is_refused_by_name() -> None:
    case = Case("window(9) | topblocks(2, block=16)", T=16, S=40, Hq=4, Hkv=2, H=4)
    inputs, selected = inputs_of(case), choice_of(case)
    inputs["q"].requires_grad_()
    with pytest.raises(NotImplementedError, match="no gradient where each query head chooses for itself"):
        fused_selected_attention(**inputs, selected=selected, patterns=case.pattern, causal=True, scale=1.0)
    with pytest.raises(ValueError, match="selected must have 16 rows"):
        fused_selected_attention(**inputs, selected=selected[:, 1:, ::2], patterns=case.pattern, causal=True, scale=1.0)


@pytest.mark.parametrize("bounds", [[0], [0, 0]], ids=["no documents", "an empty one"])
def test_nothing_to_attend_from(bounds: list[int]) -> None:
    inputs = {name: x[0].requires_grad_() for name, x in inputs_of(Case("", T=0, S=0)).items()}
    selected = torch.zeros(0, 1, 2, dtype=torch.int32, device=DEVICE)
    for pattern in (parse("topblocks(2)"), parse("window(3) | topblocks(2)")):
        out = attention(**inputs, pattern=pattern, selected=selected, cu_seqlens_q=bounds, implementation="triton")
        out.sum().backward()
        assert out.shape == (0, 2, 16)


@pytest.mark.slow
def test_the_operators_keep_what_pytorch_asks_of_one() -> None:
    case = Case("window(3) | topblocks(2, block=8)", T=16, S=16)
    inputs = [x.requires_grad_() for x in inputs_of(case).values()]
    for whole in (True, False):
        arguments = (*inputs, None, None, choice_of(case), None, None, case.pattern, True, 0.25, whole)
        torch.library.opcheck(torch.ops.sparse_attn.fused_selected_attention, arguments)


BIG = "window(200) | sinks(4) | topblocks(8, block=64"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("D", [64, 96, 128, 256])
def test_on_a_gpu(D: int, dtype: torch.dtype) -> None:
    for pattern, T, S in (
        (f"{BIG})", 1000, 1100),
        (f"{BIG}, rows=64)", 300, 1100),
        ("topblocks(4, block=100)", 1, 900),
    ):
        judge(Case(pattern, T=T, S=S, Hq=8, Hkv=2, D=D, scale=D**-0.5), dtype)


@pytest.mark.gpu
def test_gradients_repeat_to_the_bit() -> None:
    case = Case(f"{BIG})", T=3000, S=3000, Hq=8, Hkv=2, D=128)
    inputs, runs = inputs_of(case, torch.bfloat16), []
    for _ in range(2):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        attention(**leaves, pattern=parse(case.pattern)).square().sum().backward()
        runs.append([leaf.grad for leaf in leaves.values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_known_lengths_wait_for_nothing() -> None:
    case = Case(f"{BIG})", T=3000, S=3000, Hq=8, Hkv=2, D=128)
    leaves = {name: x.requires_grad_() for name, x in inputs_of(case, torch.bfloat16).items()}
    attention(**leaves, pattern=parse(case.pattern)).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(**leaves, pattern=parse(case.pattern)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
