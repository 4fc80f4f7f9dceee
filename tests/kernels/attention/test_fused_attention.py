"""The fused kernels against the oracle: in Triton's interpreter on a CPU, for real where there is a GPU."""

import sys
from dataclasses import dataclass

import pytest
import torch

from sparse_attn import Random, Sinks, Window, attention, parse
from sparse_attn.testing.judge_attention import judge_attention

# The interpreter counts with numpy, and says so: rows past the end divide 0 by 0, and are not stored.
pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning",
    "ignore:divide by zero:RuntimeWarning",
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
    causal: bool = True
    scale: float | None = None

    def __str__(self) -> str:
        form = "causal" if self.causal else "bidirectional"
        return f"{self.pattern.replace(' ', '')}-{form}-T{self.T}-S{self.S}-Hq{self.Hq}-Hkv{self.Hkv}-D{self.D}"

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        shapes = {"q": (self.T, self.Hq), "k": (self.S, self.Hkv), "v": (self.S, self.Hkv)}
        return {
            name: torch.randn(self.B, n, heads, self.D, device=DEVICE).to(dtype) for name, (n, heads) in shapes.items()
        }


CASES = [
    Case("window(20)", T=70, S=90),
    Case("window(20)", T=1, S=90, Hq=4, Hkv=2),
    Case("window(20)", T=70, S=70, causal=False, B=2),
    Case("window(5, right=20) | chunked(30)", T=64, S=70, Hq=4, Hkv=2, causal=False),
    Case("chunked(30)", T=60, S=70, scale=-0.3),
    Case("chunked(30).within(window(9)) | window(2)", T=70, S=70),
    Case("full()", T=33, S=50, D=24, causal=False),
    Case("full()", T=50, S=50, scale=0.0),
    Case("window(1)", T=40, S=40),
    Case("window(9) | sinks(3) | strided(8)", T=70, S=80, Hq=4, Hkv=2),
    Case("window(9) | sinks(3) | strided(8)", T=70, S=80, causal=False, B=2),
    Case("(window(9) | strided(3)).within(window(30)) | chunked(20)", T=70, S=80),
    Case("strided(7, offset=6)", T=30, S=30),  # the first six queries see nothing
    Case("sinks(5)", T=40, S=60, causal=False),
    Case("window(200) | sinks(3)", T=40, S=60),  # the columns lie in every interval
]


@pytest.fixture(params=["tma", "pointers"])
def loads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of loading tiles: the bulk copy engine's and plain pointers."""
    if request.param == "pointers":
        import sparse_attn.kernels.attention  # noqa: F401  # loads the three modules below

        for name in ("forward", "backward_keys", "backward_queries"):
            module = sys.modules[f"sparse_attn.kernels.attention.{name}"]
            monkeypatch.setattr(module, "can_use_tma", lambda *_: False)
    return str(request.param)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_named_shapes(case: Case) -> None:
    judge_attention(case.inputs(), parse(case.pattern), causal=case.causal, scale=case.scale, implementation="triton")


def test_both_ways_of_loading(loads: str) -> None:
    judge_attention(CASES[0].inputs(), parse(CASES[0].pattern), implementation="triton")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_packed_documents(causal: bool, loads: str) -> None:
    inputs = {name: tensor[0] for name, tensor in Case("packed", T=60, S=90).inputs().items()}
    bounds = {"cu_seqlens_q": [0, 10, 10, 41, 60], "cu_seqlens_k": [0, 10, 20, 70, 90]}
    pattern = parse("window(9) | chunked(20) | sinks(2) | strided(11, offset=10)")
    judge_attention(inputs, pattern, causal=causal, implementation="triton", **bounds)


def test_a_bad_document_reaches_no_other(loads: str) -> None:
    inputs = {name: tensor[0] for name, tensor in Case("bad", T=90, S=90).inputs().items()}
    bounds = [0, 20, 50, 90]
    before = attention(**inputs, pattern=Window(15), cu_seqlens_q=bounds, implementation="triton")
    for tensor in inputs.values():
        tensor[20:50] = float("nan")
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    after = attention(**leaves, pattern=Window(15), cu_seqlens_q=bounds, implementation="triton")
    after.nan_to_num().sum().backward()
    for rows in (slice(0, 20), slice(50, 90)):
        assert torch.equal(after[rows], before[rows])
        assert all(torch.isfinite(leaf.grad[rows]).all() for leaf in leaves.values())


def test_sums_of_columns_may_be_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import sparse_attn.kernels.attention  # noqa: F401  # loads the module below

    module = sys.modules["sparse_attn.kernels.attention.backward_columns"]
    monkeypatch.setattr(module, "_ROWS_A_SPLIT", 20)
    judge_attention(Case("split", T=90, S=100).inputs(), parse("window(9) | strided(9)"), implementation="triton")


def test_one_pattern_per_kv_head() -> None:
    case = Case("per head", T=40, S=50, Hq=4, Hkv=2)
    judge_attention(case.inputs(), [Window(9), parse("chunked(16)")], implementation="triton")


def test_what_the_kernels_do_not_serve_is_refused_by_name() -> None:
    inputs = Case("refused", T=8, S=8).inputs()
    with pytest.raises(NotImplementedError, match=r"no kernel for random\(2\) yet, .* use implementation='reference'"):
        attention(**inputs, pattern=Window(4) | Random(2), implementation="triton")
    with pytest.raises(NotImplementedError, match="takes columns with one limit"):
        attention(**inputs, pattern=Sinks(2) | Sinks(4).within(Window(5)), implementation="triton")
    with pytest.raises(NotImplementedError, match=r"takes one chunk size, .* has 2"):
        attention(**inputs, pattern=parse("chunked(4) | chunked(6)"), implementation="triton")
    with pytest.raises(NotImplementedError, match=r"got torch\.float64; use 'reference'"):
        attention(**{name: x.double() for name, x in inputs.items()}, pattern=Window(4), implementation="triton")
    wide = Case("wide", T=8, S=8, D=257).inputs()
    with pytest.raises(NotImplementedError, match="head dims to 256, got 257"):
        attention(**wide, pattern=Window(4), implementation="triton")


SCATTERED = ("window(200) | sinks(4) | strided(64)", 3000, 3100)  # enough rows for several sums of the columns


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("D", [64, 96, 128, 256])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_on_a_gpu(D: int, causal: bool, dtype: torch.dtype) -> None:
    for pattern, T, S in (
        ("window(300)", 1300, 1500),
        ("window(100) | chunked(256)", 1000, 1000),
        ("full()", 1, 700),
        SCATTERED,
    ):
        case = Case(pattern, T=T, S=S, Hq=8, Hkv=2, D=D)
        judge_attention(case.inputs(dtype), parse(pattern), causal=causal, implementation="triton")


@pytest.mark.gpu
def test_gradients_repeat_to_the_bit() -> None:
    inputs = Case("twice", T=3000, S=3000, Hq=8, Hkv=2, D=128).inputs(torch.bfloat16)
    runs = []
    for _ in range(2):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        attention(**leaves, pattern=Window(700) | Sinks(4)).square().sum().backward()
        runs.append([leaf.grad for leaf in leaves.values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
