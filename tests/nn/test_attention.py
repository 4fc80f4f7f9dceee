"""The attention layer: against attention put together by hand, and its three forms against each other."""

import pytest
import torch
from torch import Tensor

from sparse_attn import Anchors, Full, Window, attention, parse
from sparse_attn.cache import AttentionCache
from sparse_attn.nn import AnchorKeys, SparseSelfAttention, rotate
from sparse_attn.reference import anchor_rows

PATTERNS = [
    "window(9) | sinks(2) | anchors(3, block=8)",
    "window(5)",
    "full()",
    "strided(4) | chunked(6) | anchors(4, block=4)",
    "random(1, block=4) | window(3) | global((2, 30))",
]


def make_layer(text: str, **options) -> SparseSelfAttention:
    layer = SparseSelfAttention(32, 4, parse(text), kv_heads=2, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def steps(layer: SparseSelfAttention, x: Tensor, sizes: list[int]) -> Tensor:
    cache = AttentionCache(layer.pattern)
    with torch.no_grad():
        return torch.cat([layer.step(part, cache) for part in x.split(sizes, 1)], 1)


@pytest.mark.parametrize(
    ("text", "fraction"),
    [(PATTERNS[0], 0.5), *(pytest.param(text, 1.0, marks=pytest.mark.slow) for text in PATTERNS)],
)
def test_decode_and_packed_documents_equal_the_whole(text: str, fraction: float) -> None:
    layer = make_layer(text, rope_fraction=fraction)
    x = torch.randn(2, 21, 32, dtype=torch.float64)
    whole = layer(x)
    for sizes in ([1] * 21, [10, *[1] * 11]):
        torch.testing.assert_close(steps(layer, x, sizes), whole.detach(), rtol=1e-12, atol=1e-13)
    bounds = [0, 10, 10, 21]
    packed = layer(x[0], cu_seqlens=bounds)
    torch.testing.assert_close(packed[:10], whole[0, :10], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(packed[10:], layer(x[:1, 10:])[0], rtol=1e-12, atol=1e-13)
    assert torch.equal(layer(x[0], cu_seqlens=torch.tensor(bounds)), packed)


def test_the_layer_is_what_its_docstring_says() -> None:
    layer = make_layer("window(9) | anchors(3, block=8)")
    x = torch.randn(1, 30, 32, dtype=torch.float64)
    q, k, v = (p(x).view(1, 30, -1, 8) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    extra_k, extra_v = anchor_rows(k, v, *layer.anchors.weights, block=8)
    extra_k = torch.stack([rotate(extra_k[:, n], torch.full((3,), 8 * n), 10000.0) for n in range(4)], 1)
    t = torch.arange(30)
    out = attention(
        rotate(q, t, 10000.0), rotate(k, t, 10000.0), v, layer.pattern, extra_k=extra_k, extra_v=extra_v,
        implementation="reference",
    )  # fmt: skip
    torch.testing.assert_close(layer(x), layer.out_proj(out.flatten(2)), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("text", "t"), [(PATTERNS[0], 9), pytest.param(PATTERNS[3], 1, marks=pytest.mark.slow)])
def test_the_future_changes_nothing_in_any_form(text: str, t: int) -> None:
    layer = make_layer(text).float()
    x = torch.randn(1, 18, 32)
    changed = torch.cat([x[:, :t], 10 * torch.randn_like(x[:, t:])], 1)
    forms = [layer, lambda y: steps(layer, y, [1] * 18), lambda y: steps(layer, y, [18])]
    for form in forms:
        assert torch.equal(form(x)[:, :t], form(changed)[:, :t])
        assert not torch.equal(form(x)[:, t], form(changed)[:, t])


def test_a_bad_document_reaches_no_other() -> None:
    layer = make_layer(PATTERNS[0])
    x = torch.randn(60, 32, dtype=torch.float64)
    bounds = [0, 20, 40, 60]
    before = layer(x, cu_seqlens=bounds)
    x[20:40] = float("nan")
    after = layer(x, cu_seqlens=bounds)
    assert torch.equal(before[:20], after[:20])
    assert torch.equal(before[40:], after[40:])


def test_gradients_against_finite_differences() -> None:
    layer = make_layer(PATTERNS[0])
    names = [name for name, _ in layer.named_parameters() if "anchors" in name]
    leaves = [dict(layer.named_parameters())[name].detach().requires_grad_() for name in names]
    x = torch.randn(1, 11, 32, dtype=torch.float64)

    def call(*values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))[:, :, :5]

    assert torch.autograd.gradcheck(
        call, leaves, fast_mode=True
    )  # directions at random: there are 200 numbers and more


def test_every_parameter_learns() -> None:
    torch.manual_seed(3)
    layer = SparseSelfAttention(32, 4, parse(PATTERNS[0]), kv_heads=2)
    layer(torch.randn(1, 40, 32)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_seeds_repeat() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        layer = SparseSelfAttention(32, 4, parse(PATTERNS[0]), kv_heads=2)
        loss = layer(torch.randn(2, 40, 32)).square().sum()
        runs.append(torch.autograd.grad(loss, list(layer.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_a_window_with_sinks_and_anchors_decodes_in_constant_memory() -> None:
    layer = make_layer("window(9) | sinks(2) | anchors(3, block=8)")
    cache = AttentionCache(layer.pattern)
    sizes = []
    with torch.no_grad():
        for _ in range(80):
            layer.step(torch.randn(1, 1, 32, dtype=torch.float64), cache)
            sizes.append(cache.nbytes)
    assert cache.length == 80
    assert not cache.complete
    assert max(sizes[:60]) == max(sizes)
    assert cache.positions[:2].tolist() == [0, 1]


def test_bidirectional_layers_see_everything() -> None:
    layer = make_layer("window(3) | anchors(3, block=8)", causal=False)
    x = torch.randn(1, 30, 32, dtype=torch.float64)
    changed = x.clone()
    changed[:, -1] += 1
    assert (layer(x) != layer(changed)).any(-1).all()
    with pytest.raises(NotImplementedError, match="bidirectional"):
        layer.step(x, AttentionCache(layer.pattern))


def test_rotation_keeps_distances_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    at = lambda i, x: rotate(x, torch.tensor([i]), 100.0)  # noqa: E731
    near, far = (at(5, q) * at(3, k)).sum(), (at(105, q) * at(103, k)).sum()
    torch.testing.assert_close(near, far)
    part = rotate(q, torch.tensor([5]), 100.0, dims=4)
    assert torch.equal(part[..., 4:], q[..., 4:])
    assert torch.equal(rotate(q, torch.tensor([0]), 100.0), q)


BAD = {
    "heads": (lambda: SparseSelfAttention(32, 4, Full(), kv_heads=3), "heads must be a multiple of kv_heads 3, got 4"),
    "dim": (lambda: SparseSelfAttention(30, 4, Full()), "dim must be a multiple of heads 4 .* got 30"),
    "fraction": (lambda: SparseSelfAttention(32, 4, Full(), rope_fraction=1.5), "between 0 and 1, got 1.5"),
    "pooling": (lambda: AnchorKeys(2, 8, r=3, block=4, pooling="max"), "'learned' or 'mean', got 'max'"),
    "size": (lambda: AnchorKeys(2, 8, r=0, block=4), "r must be at least 1, got 0"),
    "dims": (lambda: rotate(torch.randn(1, 1, 8), torch.tensor([1]), 10.0, dims=3), "even number up to the head dim 8, got 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_two_kinds_of_anchors_are_refused_when_the_layer_runs() -> None:
    layer = SparseSelfAttention(32, 4, Window(4) | Anchors(2) | Anchors(3))
    with pytest.raises(ValueError, match="at most one term of summary keys"):
        layer(torch.randn(1, 5, 32))
