"""The experiments' own parts: the fast selector is the selector, the price of attention is what a hand counts, the page is
that of the results."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_attn.nn import BlockSelector
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


def test_lesson_is_the_divergence_between_where_exact_and_coarse_attention_look() -> None:
    coarse = importlib.import_module("coarse_selector")
    selector = BlockSelector(12, 2, 2, 8, parse("window(6) | topblocks(2, block=4)")).double()
    torch.nn.init.normal_(selector.pooling)
    model = torch.nn.ModuleList([selector])
    coarse.faster(model, taught=True)
    x, at = torch.randn(2, 30, 12, dtype=torch.float64), torch.tensor([[3, 29], [17, 28]])
    q, k, v = (torch.randn(2, 30, 2, 8, dtype=torch.float64) for _ in range(3))
    keys = selector.compress(k, v)[0]
    selector.asked = at
    selector(x, q, keys, selector.compress(k, v)[1])
    found = []
    for example, positions in enumerate(at.tolist()):
        for t in positions:
            for head in range(2):
                scores = (k[example, : t + 1, head] @ q[example, t, head] / 8**0.5).exp()
                # Whole blocks before the query's own, unless the window of 6 keys covers them.
                blocks = [b for b in range(t // 4) if b * 4 < t - 5]
                if not blocks:
                    found.append(0.0)
                    continue
                mass = torch.stack([scores[b * 4 : b * 4 + 4].sum() for b in blocks]) / scores.sum()
                logits = torch.stack([keys[example, b, head] @ q[example, t, head] / 8**0.5 for b in blocks])
                miss = mass * (mass / mass.sum()).log() - mass * logits.log_softmax(0)
                found.append(float(miss.detach().sum()))
    assert float(coarse.lesson(model).detach()) == pytest.approx(sum(found) / len(found), abs=1e-5)
    assert min(found) >= 0.0
    assert max(found) > 0.0


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
