"""The kernels of chosen blocks against a dense mask: in Triton's interpreter on a CPU, for real where there is a GPU."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_attn import parse
from sparse_attn.kernels.selected import fused_selected_attention
from sparse_attn.patterns.chosen import split_choice
from sparse_attn.testing.error_budget import assert_within_budget

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


SEVERAL = {"q_bounds": (0, 10, 10, 80, 99), "k_bounds": (0, 10, 30, 120, 139)}
CASES = [
    Case("topblocks(3, block=16)", T=80, S=96),
    Case("window(20) | topblocks(3, block=16)", T=80, S=96, Hq=4, Hkv=2),
    Case("window(20) | sinks(3) | topblocks(3, block=16, rows=16)", T=40, S=96),
    Case("window(20) | topblocks(3, block=16, rows=24)", T=50, S=70, Hq=3, Hkv=1, B=2),
    Case("window(20) | topblocks(3, block=16)", T=70, S=70, Hq=3, Hkv=1, B=2, scale=-0.3),
    Case("window(9) | topblocks(2, block=32)", T=1, S=96, Hq=4, Hkv=2),
    Case("window(20) | topblocks(3, block=16)", T=66, S=80, causal=False),
    Case("window(20) | topblocks(3, block=16, rows=8)", T=30, S=60, causal=False),
    Case("topblocks(2, block=12) | sinks(2) | strided(7)", T=66, S=80, D=24),
    Case("topblocks(2, block=80)", T=66, S=170, scale=0.0),
    Case("topblocks(2, block=80, rows=5) | window(3)", T=21, S=170),
    Case("topblocks(3, block=16).within(window(40)) | random(1, block=16) | dilated(9, 5)", T=66, S=80, Hq=1),
    Case("topblocks(3, block=16, rows=16) | random(1, block=16) | global((0, 50)) | chunked(30)", T=40, S=80, Hq=1),
    Case("window(20) | sinks(2) | topblocks(3, block=16)", T=99, S=139, **SEVERAL),
    Case("window(20) | sinks(2) | topblocks(3, block=16, rows=8)", T=99, S=139, causal=False, **SEVERAL),
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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_named_shapes(case: Case) -> None:
    judge(case)


def test_each_query_head_may_choose_for_itself() -> None:
    for text in ("window(20) | topblocks(3, block=16)", "window(20) | topblocks(3, block=16, rows=16)"):
        judge(Case(text, T=70, S=80, Hq=4, Hkv=2, H=4), gradients=False)
