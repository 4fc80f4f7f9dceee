"""The kernel of best blocks against sorting, and the whole choice against plain torch."""

import importlib
import math

import pytest
import torch
from torch import Tensor

from sparse_attn import parse
from sparse_attn.kernels.selected import best_blocks
from sparse_attn.kernels.selected.select import best_first
from sparse_attn.ops import select_blocks

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sorted_best(scores: Tensor, ranges: Tensor, width: int) -> list[list[int]]:
    """Best blocks of each row, by number, from Python's own sorting."""
    found = []
    for h, heads in enumerate(scores[0]):
        for t, row in enumerate(heads.tolist()):
            first, stop, out_first, out_stop = ranges[h % len(ranges), t].tolist()
            allowed = [b for b in range(first, stop) if not out_first <= b < out_stop]
            allowed.sort(key=lambda b: (math.inf if math.isnan(row[b]) else -row[b], b))
            best = sorted(allowed[:width])
            found.append(best + [-1] * (width - len(best)))
    return found


@pytest.mark.parametrize("kind", ["random", "ties", "not finite"])
@pytest.mark.parametrize(("n_blocks", "width"), [(5, 3), (40, 7), (33, 40)])
def test_best_blocks_are_those_that_sorting_finds(n_blocks: int, width: int, kind: str) -> None:
    scores = torch.randn(1, 2, 9, n_blocks)
    if kind == "ties":
        scores = scores.round()  # 0 and -0 among them
    if kind == "not finite":
        draw = torch.rand(scores.shape)
        scores[draw < 0.5], scores[draw < 0.3], scores[draw < 0.2] = math.nan, math.inf, -math.inf
    for heads in (1, 2):
        edges = torch.randint(0, n_blocks + 1, (heads, 9, 4)).sort(-1).values
        ranges = edges[..., [0, 3, 1, 2]].int()
        ranges[0, 0] = 0  # nothing to choose from
        got = best_blocks(scores.to(DEVICE), ranges.to(DEVICE), width)
        assert got.flatten(0, 2).tolist() == sorted_best(scores, ranges, width)


def test_best_first_is_the_order_of_scores_then_of_numbers() -> None:
    nan, low = math.nan, -math.inf
    scores = torch.tensor([[[[1.0, 3.0, 0.0, -0.0, 3.0, nan, low, 9.0]]]])
    chosen = torch.tensor([[[[0, 1, 2, 3, 4, 5, 6, -1, -1]]]], dtype=torch.int32)
    assert best_first(scores, chosen).flatten().tolist() == [1, 4, 0, 2, 3, 5, 6, -1, -1]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_the_kernel_chooses_what_plain_torch_chooses(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sparse_attn.ops.select_blocks")
    for text, T, S in (
        ("window(9) | topblocks(3, block=8)", 20, 60),
        ("window(9) | topblocks(3, block=8, rows=12)", 30, 65),
        ("topblocks(2, block=8).within(window(30, right=9)) | chunked(24)", 10, 65),
    ):
        q, k = torch.randn(2, T, 4, 16, device=DEVICE), torch.randn(2, S, 2, 16, device=DEVICE)
        chosen = []
        for fused in (True, False):
            monkeypatch.setattr(module, "_fused", lambda *_, fused=fused: fused)
            chosen.append(select_blocks(q, k, parse(text), causal=causal))  # in the same order, too
        assert torch.equal(*chosen)


@pytest.mark.gpu
def test_long_rows_and_many_tiles() -> None:
    for n_blocks in (1000, 2048, 4000):
        scores = torch.randn(1, 2, 300, n_blocks, device="cuda").mul(8).round()  # many ties
        ranges = torch.tensor([0, n_blocks, 3, 9], device="cuda", dtype=torch.int32).expand(1, 300, 4)
        got = best_blocks(scores, ranges, 32)
        order = scores.clone()
        order[..., 3:9] = -math.inf
        expected = order.sort(dim=-1, descending=True, stable=True).indices[..., :32].sort(-1).values
        assert torch.equal(got.long(), expected)
