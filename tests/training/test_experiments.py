"""The experiments' own parts: the fast selector is the selector, the price of attention is what a hand counts, the page is
that of the results."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_attn.models import LanguageModel
from sparse_attn.nn import BlockSelector, SparseSelfAttention
from sparse_attn.patterns import parse

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _experiments_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))


def test_fast_selector_gives_what_the_selector_gives() -> None:
    selector = BlockSelector(12, 2, 2, 8, parse("window(16) | topblocks(3, block=8)")).double()
    torch.nn.init.normal_(selector.pooling)
    x = torch.randn(2, 61, 12, dtype=torch.float64)
    q, k, v = (torch.randn(2, 61, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    leaves = [q, k, v, *selector.parameters()]

    def run() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        coarse, selected = selector(x, q, *selector.compress(k, v))
        weight = torch.linspace(-1, 1, coarse.numel(), dtype=torch.float64).view_as(coarse)
        return coarse, selected, list(torch.autograd.grad((coarse * weight).sum(), leaves))

    expected = run()
    importlib.import_module("coarse_selector").faster(torch.nn.ModuleList([selector]))
    found = run()
    assert type(selector).__name__ == "CoarseSelector"
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[2], expected[2])


def test_selectors_are_taught_where_the_model_is_asked_while_it_trains() -> None:
    coarse = importlib.import_module("coarse_selector")
    pattern = parse("window(6) | topblocks(2, block=4)")
    layer = SparseSelfAttention(16, 2, pattern, rope_theta=None)
    model = LanguageModel(40, 16, [layer])
    lesson = coarse.teach(model, coarse.faster(model))
    tokens, at = torch.randint(40, (2, 30)), torch.tensor([[20, 29], [17, 28]])
    model(tokens, at)
    assert torch.equal(layer.selector.taught_at, at)
    lesson().backward()
    assert layer.selector.pooling.grad.abs().max() > 0
    model.eval()
    model(tokens, at)
    with pytest.raises(ValueError, match="lesson: nothing to take"):
        lesson()


def test_price_of_attention_is_what_a_hand_counts() -> None:
    flops = importlib.import_module("attention_cost").flops
    # 8 queries: 1 + 2 + 6 * 3 pairs of a window of 3, 4 * 10 FLOPs each, 2 heads.
    assert flops(parse("window(3)"), 8, 2, 2, 10) == 4 * 10 * 2 * 21
    # Two extra keys a query; pooling 6 * 10 a key and KV head; 2 anchors read 2 blocks.
    assert (
        flops(parse("window(3) | anchors(2, block=4)"), 8, 2, 1, 10) == 4 * 10 * 2 * (21 + 16) + 60 * 8 + 4 * 10 * 2 * 2
    )
    # Up to 4 chosen keys more, no more than there are: 1, 2, 3, 4, 5, 6, 7, 7; then half of
    # 8 x 2 scores of blocks in 2 heads, and means of 8 keys in 2.
    static = 4 * 10 * 2 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 7)
    assert flops(parse("window(3) | topblocks(1, block=4)"), 8, 2, 2, 10) == static + 20 * 2 * 8 + 10 * 2 * 8


@pytest.mark.slow
def test_page_is_that_of_the_results() -> None:
    page = subprocess.run([sys.executable, "experiments/quality_page.py", "--check"], cwd=ROOT, check=False, env=None)
    assert page.returncode == 0
