"""The router: what it decides is what is read, paid for and counted."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_attn import Anchors, Sinks, TopBlocks, Window, attention, parse, select_blocks
from sparse_attn.nn import Router
from sparse_attn.nn.router import Route
from sparse_attn.ops import selected_pairs


def brute_force(route: Route, selected: Tensor, window: int, block: int, r: int = 0) -> list[int]:
    """Pairs of one example by looking at every one, for each head."""
    n, heads, _ = selected.shape
    totals = []
    for head in range(heads):
        total = 0
        for i in range(n):
            blocks = selected[i, head, : int(route.blocks[0, i, head])].tolist()
            total += sum(i - window < j or j // block in blocks for j in range(i + 1))
            total += r * int(route.anchors[0, i, head])
        totals.append(total)
    return totals


@pytest.mark.parametrize("block", [1, 8])
def test_reported_pairs_are_those_of_a_count(block: int) -> None:
    pattern = Window(5) | TopBlocks(3, 4) | Anchors(2, block=8)
    router = Router(6, 2, pattern, budgets=(0, 1, 3), block=block)
    q, k = torch.randn(1, 40, 4, 8), torch.randn(1, 40, 2, 8)
    selected = select_blocks(q, k, pattern)
    route = router(torch.randn(1, 40, 6) * 4)
    assert len(route.blocks.unique()) > 1
    assert route.anchors.any()
    assert not route.anchors.all()
    assert router.spent_pairs(route, selected)[0].tolist() == brute_force(route, selected[0], 5, 4, r=2)
    runs = route.blocks[0].unflatten(0, (-1, block))
    assert (runs == runs[:, :1]).all()  # a run of queries decides once


def test_pairs_of_a_choice_stay_within_the_budget_of_its_pattern() -> None:
    pattern = parse("window(5) | sinks(2) | topblocks(3, 4, rows=4)")
    q, k = torch.randn(2, 33, 4, 8), torch.randn(2, 50, 2, 8)
    selected = select_blocks(q, k, pattern)
    counted = selected_pairs(selected, pattern, 33, 50)
    assert counted.shape == (2, 2)
    assert (counted <= pattern.pairs(33, 50)).all()
    assert (counted > (Window(5) | Sinks(2)).pairs(33, 50)).all()
    packed = selected_pairs(selected[0], pattern, cu_seqlens_q=[0, 33], cu_seqlens_k=[0, 50])
    assert torch.equal(packed, counted[0])


def test_what_was_decided_is_what_is_read() -> None:
    pattern = Window(5) | TopBlocks(3, 4) | Anchors(2, block=8)
    router = Router(6, 2, pattern, budgets=(0, 3))
    q, k, v = torch.randn(1, 40, 4, 8), torch.randn(1, 40, 2, 8), torch.randn(1, 40, 2, 8)
    extra = {name: torch.randn(1, 5, 2, 2, 8) for name in ("extra_k", "extra_v")}
    selected = select_blocks(q, k, pattern)
    route = router(torch.randn(1, 40, 6) * 4)
    out = router.attend(route, q, k, v, selected, **extra)
    for blocks in (0, 3):
        for with_anchors in (False, True):
            own = pattern if with_anchors else Window(5) | TopBlocks(3, 4)
            chosen = selected if blocks else torch.full_like(selected, -1)
            expected = attention(q, k, v, own, selected=chosen, **(extra if with_anchors else {}))
            here = ((route.blocks == blocks) & (route.anchors == with_anchors)).repeat_interleave(2, -1)
            assert here.any()
            torch.testing.assert_close(out[here], expected[here])


def test_the_budget_term_pulls_spent_pairs_down() -> None:
    pattern = Window(5) | TopBlocks(4, 4)
    router = Router(6, 2, pattern, budgets=(0, 2, 4))
    with torch.no_grad():
        router.score.bias.copy_(torch.tensor([0.0, 0.0, 3.0] * 2))  # spends all at first
    q, k = torch.randn(1, 60, 4, 8), torch.randn(1, 60, 2, 8)
    selected, x = select_blocks(q, k, pattern), torch.randn(1, 60, 6)
    spent = []
    optimizer = torch.optim.Adam(router.parameters(), lr=0.2)
    for budget in (None, 8.0, 0.0):
        for _ in range(0 if budget is None else 80):
            optimizer.zero_grad()
            router(x).over(budget or 0.0).backward()
            optimizer.step()
        router.eval()
        spent.append(int(router.spent_pairs(router(x), selected).sum()))
        router.train()
    assert spent[0] > spent[1] > spent[2]
    assert spent[2] < 1.1 * 2 * Window(5).pairs(60)


@pytest.mark.slow
def test_spending_follows_the_input() -> None:
    """Queries with a mark need a block far behind, others only themselves: the router learns to tell them apart."""
    torch.manual_seed(2)
    pattern = Window(1) | TopBlocks(1, 4)
    router = Router(2, 1, pattern, budgets=(0, 1))
    selected = torch.zeros(8, 16, 1, 1, dtype=torch.int64)
    q = k = torch.zeros(8, 16, 1, 4)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.1)
    for _ in range(60):
        marked = torch.rand(8, 16) < 0.5
        v = torch.randn(8, 16, 1, 4)
        far, near = (attention(q, k, v, own, selected=s) for own, s in ((pattern, selected), (Window(1), None)))
        route = router(torch.stack([marked.float(), 1 - marked.float()], -1))
        out = router.attend(route, q, k, v, selected)
        error = (out - torch.where(marked[..., None, None], far, near))[:, 4:].square().mean()
        optimizer.zero_grad()
        (error + 0.1 * route.over(0.0)).backward()
        optimizer.step()
    router.eval()
    assert router(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])).blocks.flatten().tolist() == [1, 0]


def test_documents_and_later_tokens() -> None:
    router = Router(6, 2, Window(5) | TopBlocks(3, 4), budgets=(0, 3), block=8).eval()
    x = torch.randn(30, 6) * 4
    packed = router(x, cu_seqlens=[0, 11, 30]).blocks
    assert torch.equal(packed[:11], router(x[:11]).blocks)
    assert torch.equal(packed[11:], router(x[11:]).blocks)
    changed = torch.cat([x[:13], torch.randn(17, 6) * 4])
    assert torch.equal(router(changed).blocks[:13], router(x).blocks[:13])


def test_expected_is_the_mean_price_of_the_probabilities() -> None:
    """By one number at a time: blocks and anchors beside the static terms, priced in full, noise and temperature left out."""
    pattern = Window(5) | TopBlocks(3, 4) | Anchors(2, block=8)
    router = Router(6, 2, pattern, budgets=(0, 3), block=4, temperature=0.3)
    x = torch.randn(2, 10, 6) * 3
    route = router(x)
    total = 0.0
    for row in x:
        for t in range(10):
            scores = (router.score.weight @ row[t // 4 * 4] + router.score.bias).view(2, 4).tolist()
            for own in scores:
                weights = [math.exp(score) for score in own]
                prices = [count * 4 + 2 * anchors for anchors in (0, 1) for count in (0, 3)]
                total += sum(w * price for w, price in zip(weights, prices, strict=True)) / sum(weights)
    assert float(route.expected.detach()) == pytest.approx(total / 40, rel=1e-5)
    assert route.most == 14


def test_noise_is_drawn_in_float32_and_is_gumbels() -> None:
    """bfloat16 has 256 numbers below 1, and -log(-log(1)) is infinite: one draw in some hundred would decide for everything."""
    router = Router(2, 1, Window(5) | TopBlocks(1, 4), budgets=(0, 1)).bfloat16()
    with torch.no_grad():
        router.score.weight.zero_()
        router.score.bias.copy_(torch.tensor([0.0, 3.0]))
    route = router(torch.zeros(1, 60_000, 2, dtype=torch.bfloat16))
    assert route.weights.dtype == torch.float32
    assert len(route.weights.unique()) > 10_000
    assert route.weights.isfinite().all()
    cheap = float((route.blocks == 0).double().mean())
    expected = 1 / (1 + math.exp(3))
    assert abs(cheap - expected) < 4 * math.sqrt(expected * (1 - expected) / 60_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = router.float()(torch.zeros(1, 10, 2))
    assert inside.weights.dtype == inside.expected.dtype == torch.float32


def test_a_decision_copies_nothing_from_the_host_and_waits_for_nothing() -> None:
    """What a CUDA graph cannot hold: numbers read off a device, and tensors made from Python's."""

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.overloadpacket not in forbidden, func
            return func(*args, **(kwargs or {}))

    aten = torch.ops.aten
    forbidden = {aten._local_scalar_dense, aten.nonzero, aten.lift_fresh, aten._unique2}
    router = Router(6, 2, Window(5) | TopBlocks(3, 4) | Anchors(2, block=8), budgets=(0, 3), block=4)
    x = torch.randn(1, 30, 6)
    for module in (router.train(), router.eval()):
        with Watched():
            module(x)


def test_the_state_is_the_weights_alone() -> None:
    router = Router(6, 2, Window(5) | TopBlocks(3, 4), budgets=(0, 3))
    assert set(router.state_dict()) == {"score.weight", "score.bias"}


@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        ("window(4)", {}, r"must have a TopBlocks term with rows=1, .* got window\(4\)"),
        ("window(4) | topblocks(2, rows=4)", {}, "must have a TopBlocks term with rows=1"),
        ("topblocks(2)", {}, "must have a static term"),
        (
            "window(4) | topblocks(2)",
            {"budgets": (0, 3)},
            r"budgets must lie between 0 and topblocks\(2\)'s k, .* got \(0, 3\)",
        ),
    ],
)
def test_a_wrong_router_is_refused(pattern: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Router(4, 2, parse(pattern), **options)


def test_what_was_made_without_memory_decides_as_any_other() -> None:
    pattern = Window(4) | TopBlocks(4, block=2)
    with torch.device("meta"):
        empty = Router(16, 2, pattern)
    filled, own = empty.to_empty(device="cpu"), Router(16, 2, pattern)
    filled.load_state_dict(own.state_dict())
    for name in ("_counts", "_with_anchors", "_prices"):
        assert torch.equal(getattr(filled, name), getattr(own, name))
