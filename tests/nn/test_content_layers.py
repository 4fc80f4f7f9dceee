"""Layers around what content chooses: hashing with shared queries and keys, and routed blocks."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor

from sparse_attn import Hashed, TopBlocks, Window, attention, parse
from sparse_attn.cache import AttentionCache
from sparse_attn.nn import RoutedSelfAttention, SharedSelfAttention, SparseSelfAttention, budget_terms, rotate


def randomise(layer: SparseSelfAttention) -> SparseSelfAttention:
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def steps(layer: SparseSelfAttention, x: Tensor, sizes: list[int]) -> Tensor:
    cache = AttentionCache(layer.pattern)
    with torch.no_grad():
        return torch.cat([layer.step(part, cache) for part in x.split(sizes, 1)], 1)


def test_hashing_layers_decode_and_pack_as_they_read_the_whole() -> None:
    x = torch.randn(1, 18, 32, dtype=torch.float64)
    text = "window(3) | hashed(2, 4, chunk=2) | anchors(2, block=8)"
    for layer in (SparseSelfAttention(32, 4, parse(text), kv_heads=2), SharedSelfAttention(32, 4, parse(text))):
        randomise(layer)
        whole = layer(x)
        torch.testing.assert_close(steps(layer, x, [12, *[1] * 6]), whole.detach(), rtol=1e-11, atol=1e-12)
        packed = layer(x[0], cu_seqlens=[0, 11, 18])
        torch.testing.assert_close(packed[:11], whole[0, :11], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(packed[11:], layer(x[:, 11:])[0], rtol=1e-11, atol=1e-12)


def test_shared_keys_are_the_queries_directions() -> None:
    layer = randomise(SharedSelfAttention(32, 4, Window(3) | Hashed(2, 4, 2)))
    x = torch.randn(1, 18, 32, dtype=torch.float64)
    q, v = (p(x).view(1, 18, 4, 8) for p in (layer.q_proj, layer.v_proj))
    t = torch.arange(18)
    k = rotate(q / q.square().sum(-1, keepdim=True).sqrt(), t, 10000.0)
    out = attention(rotate(q, t, 10000.0), k, v, layer.pattern, implementation="reference")
    torch.testing.assert_close(layer(x), layer.out_proj(out.flatten(2)), rtol=1e-11, atol=1e-12)
    with pytest.raises(ValueError, match="kv_heads must be left out: each of 4 query heads has its keys, got 2"):
        SharedSelfAttention(32, 4, Window(3), kv_heads=2)


def test_a_routed_layer_reads_what_it_decided_and_trains_its_router() -> None:
    text = "window(3) | topblocks(2, 4) | anchors(2, block=8)"
    layer = randomise(RoutedSelfAttention(32, 4, parse(text), kv_heads=2, budgets=(0, 2), target=4))
    x = torch.randn(1, 20, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match="nothing was spent yet: call the layer first"):
        layer.spent_pairs()
    loss = layer(x).square().sum() + layer.budget_term()
    loss.backward()
    assert layer.router.score.weight.grad.abs().max() > 0
    assert layer.selector.pooling.grad.abs().max() > 0
    layer.eval()
    with torch.no_grad():  # decides for everything: the same as the layer without a router
        layer.router.score.weight.zero_()
        layer.router.score.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0] * 2))
        plain = SparseSelfAttention(32, 4, parse(text), kv_heads=2).double()
        plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "router" not in name})
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-11, atol=1e-12)
        assert (layer.spent_pairs() <= layer.pattern.pairs(20) + 2 * 20).all()
        changed = torch.cat([x[:, :9], torch.randn_like(x[:, 9:])], 1)
        assert torch.equal(layer(changed)[:, :9], layer(x)[:, :9])
    with pytest.raises(NotImplementedError, match="a routed layer reads whole sequences"):
        layer.step(x[:, :1], AttentionCache(layer.pattern))
    with pytest.raises(ValueError, match="causal must be True: a router reads the first token"):
        RoutedSelfAttention(32, 4, Window(3) | TopBlocks(2, 4), budgets=(0, 2), causal=False)


class Saved:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def routed(**options) -> RoutedSelfAttention:
    torch.manual_seed(4)
    return RoutedSelfAttention(16, 2, Window(3) | TopBlocks(4, 2), **options)


def test_a_routed_layer_leaves_no_graph_behind_and_can_be_copied() -> None:
    for target in (None, 4.0):
        layer = routed(target=target)
        x = torch.randn(1, 12, 16, requires_grad=True)
        layer(x)
        for tensor in (layer.route.weights, layer.route.expected, layer.route.blocks, layer._last[0]):
            assert tensor.grad_fn is None
            assert not tensor.requires_grad
        copied = copy.deepcopy(layer)  # with a term still there, too
        copied.load_state_dict(layer.state_dict())
        layer.eval()
        copied.eval()
        assert torch.equal(copied(x), layer(x))
        assert pickle.loads(pickle.dumps(layer)).state_dict().keys() == layer.state_dict().keys()
        assert layer._term is None  # eval mode leaves none
        # Nothing but the caller holds the graph: with the output goes what the pass kept.
        layer.train()
        saved: weakref.WeakSet[Saved] = weakref.WeakSet()

        def pack(tensor: Tensor, saved: weakref.WeakSet[Saved] = saved) -> Saved:
            saved.add(one := Saved(tensor.detach()))  # itself, it may be what its own node saves: a cycle
            return one

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
            out = layer(x)
        if target is not None:
            layer.budget_term()
        assert len(saved) > 0
        del out
        gc.collect()
        assert len(saved) == 0


def test_the_budget_term_is_taken_once_and_trains_the_router_alone_and_in_a_model() -> None:
    layer, x = routed(target=1.0), torch.randn(1, 12, 16, requires_grad=True)
    layer(x)
    term = layer.budget_term()
    assert float(term.detach()) == pytest.approx(float(layer.route.over(1.0)))
    term.backward()
    assert layer.router.score.weight.grad.abs().max() > 0
    assert x.grad.abs().max() > 0
    with pytest.raises(ValueError, match="nothing to take"):
        layer.budget_term()
    with torch.no_grad():
        layer(x)
    with pytest.raises(ValueError, match="nothing to take"):
        layer.budget_term()
    model = torch.nn.Sequential(routed(target=1.0), routed(), routed(target=2.0))
    model(x)
    expected = model[0].route.over(1.0) + model[2].route.over(2.0)
    torch.testing.assert_close(budget_terms(model).detach(), expected)


def test_default_budgets_fit_the_pattern() -> None:
    layer = routed()
    assert [count for count, _ in layer.router.options] == [0, 1, 4]
    assert layer(torch.randn(1, 12, 16)).shape == (1, 12, 16)
