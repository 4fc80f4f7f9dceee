"""The fused kernels of anchors against the oracle: in Triton's interpreter on a CPU, for real where there is a GPU."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sparse_attn.cache import AnchorCache
from sparse_attn.ops import AnchorWeights, anchor_keys, anchor_scan, read_anchors
from sparse_attn.testing import assert_within_budget
from tests.ops.test_anchors import Case

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning",
    "ignore:divide by zero:RuntimeWarning",
    "ignore:overflow encountered:RuntimeWarning",
    "ignore:All-NaN slice encountered:RuntimeWarning",
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning",
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    Case(S=21, B=2),
    Case(S=18, cu_seqlens=(0, 3, 3, 18)),
    Case(S=3, D=24, pooling="mean", causal=False),
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in (
            Case(S=90, B=2, D=24, pooling="mean"),
            Case(S=40, causal=False, pooling="mean", B=2),
            Case(S=70, block=2, pooling="mean", causal=False),
            Case(S=40, cu_seqlens=(0, 16, 40), causal=False),
        )
    ),
]
GPU_CASES = [
    Case(S=1500, block=128, D=128, dtype="bf16", B=2),
    Case(S=1500, block=64, D=64, dtype="fp16", B=2, pooling="mean"),
    Case(S=1500, block=100, D=96, dtype="bf16"),
    Case(S=1500, block=64, D=256, dtype="bf16"),
    Case(S=90, block=1, D=128, dtype="bf16", pooling="mean"),
    Case(S=700, block=16, D=128, dtype="fp32", cu_seqlens=(0, 257, 700)),
    Case(S=1500, block=64, D=128, dtype="bf16", cu_seqlens=(0, 1, 1, 640, 700, 1500)),
]


def judge(case: Case) -> None:
    """Rows, what passes through, and every gradient, within the budget."""
    inputs = case.inputs()
    results = []
    for which, dtype in (("triton", inputs[0].dtype), ("oracle", torch.float64), ("plain", inputs[0].dtype)):
        device = DEVICE if which == "triton" else "cpu"
        leaves = [x.to(device, dtype, copy=True).requires_grad_() for x in inputs]
        if which == "triton":
            k, v, *weights = leaves
            read = read_anchors(
                k, v, AnchorWeights(*weights), case.block, causal=case.causal, cu_seqlens=case.cu_seqlens,
                implementation="triton",
            )  # fmt: skip
            rows = [*read[:4]]
        else:
            rows = [leaves[0] * 1, leaves[1] * 1, *(case.oracle if which == "oracle" else case.plain)(leaves)]
        torch.manual_seed(1)
        draws = [torch.randn(x.shape, dtype=torch.float64).to(device) for x in rows]
        sum((x.double() * draw).sum() for x, draw in zip(rows, draws, strict=True)).backward()  # type: ignore[union-attr]
        found = [*rows[2:], *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)]
        results.append([x.detach().cpu() for x in found])
    names = ["extra_k", "extra_v", "dk", "dv", "dqueries", "dlogit", "dinitial_k", "dinitial_v", "dpooling"]
    for name, got, oracle, plain in zip(names, *results, strict=False):
        # A difference of sums over all blocks, kept in float32; and so few numbers may all happen to round well in plain PyTorch.
        step = max(torch.finfo(got.dtype).eps, 16 * torch.finfo(torch.float32).eps) * float(oracle.abs().max())
        assert_within_budget(name, got, oracle, plain, floor=step if name == "dlogit" else None)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_and_gradients_against_the_oracle(case: Case) -> None:
    judge(case)


def test_the_way_back_goes_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """And every loop more than once around: blocks whose loads are under way together are few here."""
    small = {"spans.CHUNK": 3, "scan.GROUP": 2, "backward_chunks.GROUP": 2, "backward_chunks.FAR": 2}
    for name, count in small.items():
        monkeypatch.setattr(f"sparse_attn.kernels.anchors.{name}", count)
    judge(Case(S=20, block=2, cu_seqlens=(0, 4, 4, 20)))  # of 2, 0 and 8 blocks


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_on_a_gpu(case: Case) -> None:
    judge(case)


def on_device(case: Case) -> tuple[Tensor, Tensor, AnchorWeights]:
    k, v, *weights = [x.to(DEVICE) for x in case.inputs()]
    return k, v, AnchorWeights(*weights)


@pytest.mark.slow
def test_many_rows_need_several_programs() -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 1, 20, 1, 16, device=DEVICE)
    tensors = [torch.randn(1, 21, *rest, device=DEVICE) for rest in ((16,), (), (16,), (16,))]
    results = []
    for implementation in ("triton", "torch"):
        leaves = [x.clone().requires_grad_() for x in (k, v, *tensors)]
        rows = anchor_keys(*leaves[:2], AnchorWeights(*leaves[2:]), 4, implementation=implementation)
        (rows[0] * rows[1]).sum().backward()
        results.append([*rows, *(x.grad for x in leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.gpu)])
def test_whole_chunks_and_single_tokens_have_the_same_bits(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    S, sizes_tried = 10, ([1] * 10, [3, 7])
    if DEVICE == "cuda":  # whole groups of blocks and a rest, where the compiler has a loop for each
        S, sizes_tried = 165, ([1] * 5 + [30, 130], [90, 75])
    else:
        monkeypatch.setattr("sparse_attn.kernels.anchors.scan.GROUP", 2)
    case = Case(S=S, block=4, dtype=dtype)
    k, v, weights = on_device(case)
    whole = anchor_keys(k, v, weights, 4, implementation="triton")
    monkeypatch.setattr("sparse_attn.ops.anchors._serves", lambda *_: True)
    for sizes in sizes_tried:
        cache, start = AnchorCache(4), 0
        for size in sizes:
            rows = cache.extend(k[:, start : start + size], v[:, start : start + size], weights)
            first, stop = start // 4, -(-(start + size) // 4)
            for one, other in zip(rows, whole, strict=True):
                assert torch.equal(one, other[:, first:stop])
            start += size


def test_the_scan_alone_goes_on_from_its_state() -> None:
    k, v, weights = on_device(Case(S=9, block=1))
    rows_k, _, end = anchor_scan(weights.queries, k, v, weights.initial, implementation="triton")
    state, found = weights.initial, []
    for start, stop in pairwise([0, 1, 9]):
        rows, _, state = anchor_scan(
            weights.queries, k[:, start:stop], v[:, start:stop], state, implementation="triton"
        )  # fmt: skip
        found.append(rows)
    assert torch.equal(torch.cat(found, 1), rows_k)
    assert all(torch.equal(one, other) for one, other in zip(state, end, strict=True))


@pytest.mark.parametrize("t", [0, pytest.param(15, marks=pytest.mark.slow)])
def test_a_token_changes_no_row_of_its_own_block_or_before(t: int) -> None:
    case = Case(S=24)
    k, v, weights = on_device(case)
    before = anchor_keys(k, v, weights, 8, implementation="triton")
    for x in (k, v):
        x[:, t:] = 100 * torch.randn_like(x[:, t:])
    after = anchor_keys(k, v, weights, 8, implementation="triton")
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:, : t // 8 + 1], other[:, : t // 8 + 1])
        assert not torch.equal(one[:, t // 8 + 1 :], other[:, t // 8 + 1 :])


def test_a_bad_document_reaches_no_other() -> None:
    case = Case(S=15, cu_seqlens=(0, 5, 10, 15), pooling="mean")
    k, v, weights = on_device(case)
    before = anchor_keys(k, v, weights, 4, cu_seqlens=case.cu_seqlens, implementation="triton")
    k[5:10], v[7:9] = float("nan"), float("inf")
    k, v = k.requires_grad_(), v.requires_grad_()
    after = anchor_keys(k, v, weights, 4, cu_seqlens=case.cu_seqlens, implementation="triton")
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[[0, 1, 4, 5]], other[[0, 1, 4, 5]])
    after[0][[0, 1, 4, 5]].sum().backward()
    assert torch.isfinite(k.grad[:5]).all()
    assert torch.isfinite(k.grad[10:]).all()


@pytest.mark.slow
def test_transposed_inputs_are_read_right() -> None:
    k, v, weights = on_device(Case(S=20, B=2))
    expected = anchor_keys(k, v, weights, 8, implementation="triton")
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]
    last_apart = [torch.stack([x, x], -1)[..., 0] for x in (k, v)]
    for views in (heads_first, last_apart):
        for one, other in zip(anchor_keys(*views, weights, 8, implementation="triton"), expected, strict=True):
            assert torch.equal(one, other)


def test_what_the_kernels_do_not_serve_is_refused_by_name() -> None:
    k, v, weights = on_device(Case(S=8, dtype="fp64"))
    with pytest.raises(NotImplementedError, match=r"got torch\.float64"):
        anchor_keys(k, v, weights, 4, implementation="triton")
    with pytest.raises(ValueError, match="implementation must be None, 'torch' or 'triton', got 'cpu'"):
        anchor_keys(k, v, weights, 4, implementation="cpu")


@pytest.mark.gpu
def test_gradients_repeat_to_the_bit() -> None:
    runs = []
    for _ in range(2):
        tensors = [x.to(DEVICE).requires_grad_() for x in Case(S=3000, block=64, D=128, dtype="bf16").inputs()]
        read = read_anchors(*tensors[:2], AnchorWeights(*tensors[2:]), 64)
        (read.extra_k * read.extra_v).float().sum().backward()
        runs.append([x.grad for x in tensors])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
