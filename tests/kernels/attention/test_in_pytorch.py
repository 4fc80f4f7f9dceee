"""The kernels as PyTorch's users meet them: compiled, under autocast, checkpointed, captured in a graph, off the default device."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import sparse_attn.kernels.attention  # noqa: F401  # registers the operators
from sparse_attn import Anchors, Pattern, Sinks, Window, attention, parse
from tests.apart import run_apart

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning",
    "ignore:divide by zero:RuntimeWarning",
    "ignore:overflow encountered:RuntimeWarning",
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning",
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PATTERN = Window(9) | Sinks(2)


def make_inputs(n: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(1, n, heads, 16, device=DEVICE, dtype=dtype, requires_grad=True) for heads in (2, 1, 1)]


def run(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern = PATTERN, **options: Any) -> Any:
    return attention(q, k, v, pattern, implementation="triton", **options)


@pytest.mark.parametrize(
    "extra", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "extra keys"]
)  # with extra keys every argument is there
def test_the_operators_keep_what_pytorch_asks_of_one(extra: bool) -> None:
    extra_keys = (
        [torch.randn(1, 3, 5, 1, 16, device=DEVICE, requires_grad=True) for _ in range(2)] if extra else [None] * 2
    )
    pattern = PATTERN | Anchors(5, block=16) if extra else PATTERN
    arguments = (*make_inputs(40), *extra_keys, None, None, pattern.text, True, 0.25)
    torch.library.opcheck(torch.ops.sparse_attn.fused_attention, arguments)


def test_the_operators_take_packed_documents() -> None:
    bounds = torch.tensor([0, 10, 40], device=DEVICE)
    arguments = (*make_inputs(40), None, None, bounds, bounds, PATTERN.text, True, 0.25)
    torch.library.opcheck(torch.ops.sparse_attn.fused_attention, arguments)


# In a process of its own: the checks of signatures that tests run under are Python that a compiler does not read.
COMPILED = """
import torch
from sparse_attn import Sinks, Window, attention, parse

device = "cuda" if torch.cuda.is_available() else "cpu"

def make_inputs(n):
    return [torch.randn(1, n, heads, 16, device=device, requires_grad=True) for heads in (2, 1, 1)]

def run(q, k, v, pattern=Window(9) | Sinks(2)):
    return attention(q, k, v, pattern, implementation="triton")

graphs = []

def count(graph, example_inputs):
    graphs.append(graph)
    return graph.forward

compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=count)
for n in (20, 24, 37):
    inputs = make_inputs(n)
    assert torch.equal(compiled(*inputs), run(*inputs))
assert len(graphs) == 1, f"compiled {len(graphs)} times for three lengths"
other = parse("window(3)")
assert torch.equal(compiled(*inputs, pattern=other), run(*inputs, pattern=other))
assert len(graphs) == 2

loss = torch.compile(lambda *tensors: run(*tensors).square().sum(), fullgraph=True, backend="aot_eager")
got = torch.autograd.grad(loss(*inputs), inputs)
expected = torch.autograd.grad(run(*inputs).square().sum(), inputs)
assert all(torch.equal(one, other) for one, other in zip(got, expected))
print("compiled")
"""


def test_compiled_whole_and_once_for_all_lengths() -> None:
    done = run_apart(COMPILED)
    assert done.stdout == "compiled\n", done.stderr


def test_under_autocast_a_wide_query_meets_narrow_values() -> None:
    q, k, v = make_inputs(40)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = run(q, k.bfloat16(), v.bfloat16())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.float32
    torch.testing.assert_close(out, run(*(x.bfloat16() for x in (q, k, v))), rtol=0, atol=0)


def test_checkpointed() -> None:
    inputs = make_inputs(40)
    whole = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    again = torch.utils.checkpoint.checkpoint(run, *inputs, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(again.square().sum(), inputs), whole, strict=True):
        assert torch.equal(one, other)


def test_only_asked_for_gradients_are_computed() -> None:
    q, k, v = (tensor.detach() for tensor in make_inputs(40))
    run(q, k, v.requires_grad_()).sum().backward()
    assert q.grad is None
    assert v.grad is not None


def test_a_second_derivative_is_refused() -> None:
    inputs = make_inputs(20)
    (gradient,) = torch.autograd.grad(run(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|not to have been used|not have been used"):
        torch.autograd.grad(gradient.sum(), inputs[:1])


@pytest.mark.gpu
def test_captured_in_a_cuda_graph() -> None:
    q, k, v = (tensor.detach() for tensor in make_inputs(4000, torch.bfloat16))
    pattern = parse("window(100) | sinks(2) | strided(64) | random(2)")
    expected = run(q, k, v, pattern)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(q, k, v, pattern)
    for tensor in (q, k, v):
        tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    assert torch.equal(out, run(q, k, v, pattern))
    assert not torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_a_known_layout_waits_for_nothing() -> None:
    q, k, v = make_inputs(4000, torch.bfloat16)
    bounds = torch.tensor([0, 1000, 4000], device="cuda")
    pattern = parse("window(100) | sinks(2) | strided(64) | random(2)")
    packed = [tensor[0] for tensor in (q, k, v)]
    attention(*packed, pattern, cu_seqlens_q=bounds).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(*packed, pattern, cu_seqlens_q=bounds).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_boundaries_made_in_inference_mode() -> None:
    with torch.inference_mode():
        q, k, v = (tensor[0] for tensor in make_inputs(400, torch.bfloat16))
        bounds = torch.tensor([0, 100, 400], device="cuda")
        got = run(q, k, v, cu_seqlens_q=bounds)
        assert torch.equal(got, run(q, k, v, cu_seqlens_q=[0, 100, 400]))


@pytest.mark.gpu
def test_more_than_two_billion_elements() -> None:
    n = (1 << 31) // (16 * 128) + 4096
    q, k, v = (torch.randn(1, n, heads, 128, device="cuda", dtype=torch.bfloat16) for heads in (16, 1, 1))
    out = attention(q, k, v, Window(256))
    tail = attention(q[:, -2048:], k[:, -4096:], v[:, -4096:], Window(256))
    torch.testing.assert_close(out[:, -2048:], tail, rtol=0.02, atol=0.02)


@pytest.mark.gpu
def test_short_calls_that_hide_nothing_are_right_too() -> None:
    q, k, v = make_inputs(1000, torch.bfloat16)
    torch.testing.assert_close(attention(q, k, v, Window(1000)), run(q, k, v, Window(1000)), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("pattern", [PATTERN, [Window(9), PATTERN]], ids=["one", "by head"])
def test_without_gradients_the_same_numbers_come(mode: Any, pattern: Any) -> None:
    q, k, v = (torch.randn(1, 40, heads, 16, device=DEVICE, requires_grad=True) for heads in (4, 2, 2))
    expected = run(q, k, v, pattern, return_lse=True)
    with mode():
        got = run(q, k, v, pattern, return_lse=True)
        packed = run(q[0], k[0], v[0], pattern, cu_seqlens_q=[0, 13, 40])
    assert expected[0].requires_grad
    assert not got[0].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert torch.equal(packed, run(q[0], k[0], v[0], pattern, cu_seqlens_q=[0, 13, 40]))


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # PyTorch's own, at its first use
@pytest.mark.parametrize("gradients", [True, False])
def test_forward_mode_is_refused_and_not_answered_with_no_derivative(gradients: bool) -> None:
    q, k, v = (x.detach() for x in make_inputs(20))
    with torch.set_grad_enabled(gradients), forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        run(forward_ad.make_dual(q, torch.ones_like(q)), k, v)
