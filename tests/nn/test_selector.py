"""The selector: what trains it, and the layer's three forms against each other."""

import pytest
import torch
from torch import Tensor

from sparse_attn import attention, parse
from sparse_attn.cache import AttentionCache
from sparse_attn.nn import BlockSelector, SparseSelfAttention, rotate
from sparse_attn.ops import compressed_attention, pool_blocks

PATTERNS = [
    "window(5) | topblocks(2, 4)",
    "window(5) | sinks(2) | anchors(3, block=8) | topblocks(2, 4)",
    "topblocks(1, 8)",
]


def make_layer(text: str) -> SparseSelfAttention:
    layer = SparseSelfAttention(32, 4, parse(text), kv_heads=2).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def steps(layer: SparseSelfAttention, x: Tensor, sizes: list[int]) -> Tensor:
    cache = AttentionCache(layer.pattern)
    with torch.no_grad():
        return torch.cat([layer.step(part, cache) for part in x.split(sizes, 1)], 1)


@pytest.mark.parametrize("text", PATTERNS)
def test_decode_and_packed_documents_equal_the_whole(text: str) -> None:
    layer = make_layer(text)
    x = torch.randn(2, 22, 32, dtype=torch.float64)
    whole = layer(x)
    for sizes in ([1] * 22, [18, *[1] * 4]):
        torch.testing.assert_close(steps(layer, x, sizes), whole.detach(), rtol=1e-11, atol=1e-12)
    packed = layer(x[0], cu_seqlens=[0, 18, 18, 22])
    torch.testing.assert_close(packed[:18], whole[0, :18], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(packed[18:], layer(x[:1, 18:])[0], rtol=1e-11, atol=1e-12)


def test_the_layer_is_what_its_docstring_says() -> None:
    layer = make_layer("window(5) | topblocks(2, 4)")
    x = torch.randn(1, 30, 32, dtype=torch.float64)
    q, k, v = (p(x).view(1, 30, -1, 8) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    t = torch.arange(30)
    pooled_k, pooled_v = pool_blocks(k, v, 4, query=layer.selector.pooling)
    blocks = rotate(pooled_k, torch.arange(8) * 4 + 2, 10000.0)
    coarse, selected = compressed_attention(rotate(q, t, 10000.0), blocks, pooled_v, layer.pattern)
    out = attention(
        rotate(q, t, 10000.0), rotate(k, t, 10000.0), v, layer.pattern, selected=selected, implementation="reference"
    )
    gate = 1 / (1 + torch.exp(-(x @ layer.selector.gate.weight.T + layer.selector.gate.bias)))
    expected = layer.out_proj((out + coarse * gate[..., None]).flatten(2))
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-12)


def test_the_future_changes_nothing_in_any_form() -> None:
    layer = make_layer(PATTERNS[1]).float()
    x = torch.randn(2, 14, 32)
    forms = [layer, lambda y: steps(layer, y, [1] * 14), lambda y: steps(layer, y, [9, *[1] * 5])]
    t = 9
    changed = torch.cat([x[:, :t], 10 * torch.randn_like(x[:, t:])], 1)
    for form in forms:
        before, after = form(x), form(changed)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t], after[:, t])


def test_gradients_reach_the_selector() -> None:
    layer = make_layer(PATTERNS[0])
    x = torch.randn(1, 14, 32, dtype=torch.float64)
    layer(x).square().sum().backward()
    for parameter in layer.selector.parameters():
        assert parameter.grad.abs().max() > 0
    # Without jumps of the choice the whole layer agrees with finite differences.
    selector = BlockSelector(4, 2, 1, 3, parse("window(2) | topblocks(9, 2)")).double()
    leaves = [
        torch.randn(1, 7, *shape, dtype=torch.float64, requires_grad=True) for shape in ((4,), (2, 3), (1, 3), (1, 3))
    ]
    parameters = list(selector.parameters())

    def call(x: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        coarse, selected = selector(x, q, *selector.compress(k, v))
        return attention(q, k, v, selector.pattern, selected=selected) + coarse

    with torch.no_grad():
        selector.pooling.normal_()
    assert torch.autograd.gradcheck(call, [*leaves, *parameters], fast_mode=True)


@pytest.mark.slow
def test_training_turns_the_choice_to_the_block_that_matters() -> None:
    """The value that is asked for lies in a block far behind that only its key tells apart: the choice has to learn it."""
    torch.manual_seed(1)
    n_keys, block, dim = 64, 8, 16
    pattern = parse("window(2) | topblocks(1, 8)")
    selector = BlockSelector(dim, 1, 1, dim, pattern)
    to_query = torch.nn.Linear(dim, dim, bias=False)
    torch.nn.init.normal_(to_query.weight, std=0.05)
    optimizer = torch.optim.Adam([*selector.parameters(), *to_query.parameters()], lr=0.02)

    def batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Every block has a mark on all its keys; the query's input is the mark of one of the first six."""
        marks = torch.randn(32, n_keys // block, dim)
        wanted = torch.randint(0, 6, (32,))
        keys = marks.repeat_interleave(block, 1)[:, :, None] * 0.5
        values = torch.randn(32, n_keys // block, dim).repeat_interleave(block, 1)[:, :, None]
        x = marks[torch.arange(32), wanted][:, None]
        return x, keys, values, wanted, values[torch.arange(32), wanted * block, 0]

    def found(x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        q = to_query(x)[:, :, None] * 4
        coarse, selected = selector(x, q, *selector.compress(keys, values), n_keys=n_keys)
        return attention(q, keys, values, pattern, selected=selected) + coarse, selected

    def hits() -> float:
        x, keys, values, wanted, _ = batch()
        return (found(x, keys, values)[1][:, 0, 0, 0] == wanted).float().mean().item()

    before = hits()
    for _ in range(60):
        x, keys, values, _, target = batch()
        loss = (found(x, keys, values)[0][:, 0, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.5
    assert hits() > 0.8


def test_a_pattern_that_does_not_choose_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have a TopBlocks term, which says what is chosen, got window\(4\)"):
        BlockSelector(4, 2, 1, 3, parse("window(4)"))
