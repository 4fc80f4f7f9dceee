"""The fused kernels against the oracle: in Triton's interpreter on a CPU, for real where there is a GPU."""

import sys
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from sparse_attn import Anchors, Global, Pattern, Sinks, Strided, Window, attention, parse
from sparse_attn.testing.judge_attention import judge_attention

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
    Case("chunked(4) | chunked(6)", T=30, S=30),
    Case("sinks(2) | sinks(4).within(window(5))", T=30, S=34, causal=False),
    Case("dilated(9, 5)", T=60, S=65, Hq=1),
    Case("dilated(None, 4) | window(7)", T=60, S=60, causal=False, Hq=1),
    Case("strided(20, rows='strided')", T=45, S=50, Hq=1),  # the other rows see nothing
    Case("dilated(5, 3) | dilated(4, 2) | random(1, block=8) | sinks(2)", T=40, S=40, Hq=1),
    Case("random(3, seed=2, block=8) | window(9) | sinks(2)", T=40, S=44, Hq=1),
    Case("random(2, block=8) | random(2, block=12)", T=40, S=48, Hq=1, causal=False),
    Case("global((0, 17, 30, 31, 9999)) | window(9)", T=50, S=60),
    Case("global((0, 17, 30, 31)) | window(9)", T=60, S=60, causal=False, B=2),
    Case("(global((3, 30)) | random(2, block=8) | strided(8)).within(window(20))", T=40, S=40, Hq=1),
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
    monkeypatch.setattr(module, "_SHARE", 1.0)
    judge_attention(Case("split", T=90, S=100).inputs(), parse("window(9) | strided(9)"), implementation="triton")


def test_one_pattern_per_kv_head() -> None:
    case = Case("per head", T=40, S=50, Hq=4, Hkv=2)
    judge_attention(case.inputs(), [Window(9), parse("chunked(16)")], implementation="triton")


@pytest.mark.parametrize(("T", "S"), [(1, 20), (40, 70)])
def test_extra_keys_stand_beside_the_pattern(T: int, S: int) -> None:
    case = Case("extra", T=T, S=S, B=2)
    inputs = case.inputs()
    inputs |= {name: torch.randn(2, -(-S // 16), 5, 1, 16, device=DEVICE) for name in ("extra_k", "extra_v")}
    judge_attention(inputs, Window(9) | Sinks(2) | Anchors(5, block=16), implementation="triton")


def test_extra_keys_of_packed_documents() -> None:
    inputs = {name: tensor[0] for name, tensor in Case("extra", T=40, S=50).inputs().items()}
    q_bounds, k_bounds = [0, 10, 10, 40], [0, 10, 14, 50]
    rows = sum(-(-(stop - start) // 7) for start, stop in pairwise(k_bounds))
    inputs |= {name: torch.randn(rows, 3, 1, 16, device=DEVICE) for name in ("extra_k", "extra_v")}
    pattern = parse("window(9) | anchors(3, block=7) | random(1, block=4) | global((0, 5)) | dilated(3, 2)")
    judge_attention(inputs, pattern, implementation="triton", cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds)


def test_global_positions_per_example_and_per_document() -> None:
    pattern = Window(5) | Global([[3, 30], [25]])
    judge_attention(Case("examples", T=40, S=50, B=2).inputs(), pattern, implementation="triton")
    inputs = {name: tensor[0] for name, tensor in Case("documents", T=40, S=40).inputs().items()}
    judge_attention(inputs, pattern, implementation="triton", cu_seqlens_q=[0, 10, 40])


def test_empty_sequences() -> None:
    for T, S in ((0, 0), (0, 9)):
        inputs = {name: tensor.requires_grad_() for name, tensor in Case("empty", T=T, S=S).inputs().items()}
        out, lse = attention(**inputs, pattern=parse("window(4) | random(2)"), return_lse=True, implementation="triton")
        assert out.shape == (1, T, 2, 16)
        assert lse.shape == (1, T, 2)
        out.sum().backward()
        assert inputs["k"].grad.abs().sum() == 0


def test_no_documents_at_all() -> None:
    inputs = {name: tensor[0].requires_grad_() for name, tensor in Case("none", T=0, S=0).inputs().items()}
    out = attention(
        **inputs, pattern=parse("window(5) | sinks(2) | global((0,))"), cu_seqlens_q=[0], implementation="triton"
    )
    out.sum().backward()
    assert out.shape == (0, 2, 16)


def test_parameters_far_beyond_the_sequence() -> None:
    for text in (
        "dilated(4, 3000000000) | random(1, block=16384)",
        "strided(5000000000, offset=4000000000, rows='strided')",
    ):
        # Each residue of the dilation is a pass of its own: few tokens show what many would.
        judge_attention(Case(text, T=9, S=9, Hq=1).inputs(), parse(text), implementation="triton")


def test_rows_of_extra_keys_are_counted_where_boundaries_are_read_late() -> None:
    q, k, v = Case("rows", T=64, S=64).inputs().values()
    bounds = torch.tensor([0, 32, 64], device=DEVICE)
    extra = torch.randn(1, 1, 16, 1, 16, device=DEVICE)
    arguments = (q, k, v, extra, extra, bounds, bounds, "window(4) | anchors(16, block=16)", True, 0.25)
    with pytest.raises(ValueError, match=r"extra_k must have 4 rows .* got 1"):
        torch.ops.sparse_attn.fused_attention(*arguments)


def test_strided_and_transposed_inputs_are_read_right(loads: str) -> None:
    inputs = Case("strides", T=40, S=40, B=2, Hq=4, Hkv=2).inputs()
    expected = attention(**inputs, pattern=Window(9) | Sinks(2), implementation="triton")
    heads_first = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in inputs.items()}
    padded = {name: torch.cat([x, x], -1)[..., : x.shape[-1]] for name, x in inputs.items()}
    last_apart = {name: torch.stack([x, x], -1)[..., 0] for name, x in inputs.items()}
    expanded = {name: x[:1].expand_as(x) for name, x in inputs.items()}
    for views in (heads_first, padded, last_apart):
        assert torch.equal(attention(**views, pattern=Window(9) | Sinks(2), implementation="triton"), expected)
    both = attention(**expanded, pattern=Window(9) | Sinks(2), implementation="triton")
    assert torch.equal(both[0], both[1])


@pytest.mark.parametrize("pattern", [Window(9) | Sinks(2), Window(5) | Strided(7)])
def test_keys_and_values_may_lie_apart(loads: str, pattern: Pattern) -> None:
    """Columns at equal distances are read where they stand: each of k and v by strides of its own, or both copied."""
    inputs = Case("apart", T=40, S=40, B=2, Hq=4, Hkv=2).inputs()
    found = []
    for v in (inputs["v"], inputs["v"].transpose(1, 2).contiguous().transpose(1, 2)):
        leaves = [x.detach().requires_grad_() for x in (inputs["q"], inputs["k"], v)]
        out = attention(*leaves, pattern, implementation="triton")
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_the_kernels_do_not_serve_is_refused_by_name() -> None:
    inputs = Case("refused", T=8, S=8).inputs()
    many = Sinks(1).within(Window(1))
    for left in range(2, 33):
        many |= Sinks(1).within(Window(left))
    with pytest.raises(NotImplementedError, match=r"at most 31 different windows, .* has 32; use 'reference'"):
        attention(**inputs, pattern=many, implementation="triton")
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
