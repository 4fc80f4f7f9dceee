"""The estimate of a block's mass: its definition in float64, where it is exact, and how near it comes elsewhere."""

import math

import pytest
import torch
from torch import Tensor

from sparse_attn.ops import antidiagonal
from sparse_attn.ops.antidiagonal import antidiagonal_mass
from sparse_attn.ops.cover_blocks import heaviest_blocks

CASES = {
    "whole": (24, 24, 8, 8, 4),
    "last-queries": (11, 37, 8, 4, 4),
    "one-query": (1, 30, 4, 8, 2),
    "ragged": (29, 29, 12, 6, 3),
    "stride-1": (9, 20, 4, 2, 1),
}


def estimate(q: Tensor, k: Tensor, rows: int, block: int, stride: int) -> Tensor:
    parts = list(antidiagonal_mass(q, k, rows=rows, block=block, stride=stride))
    assert [part.start for part, _ in parts] == [0] + [part.stop for part, _ in parts[:-1]]
    return torch.cat([mass for _, mass in parts], 2)


def by_definition(q: Tensor, k: Tensor, rows: int, block: int, stride: int) -> Tensor:
    """One head's mass ``[tiles, blocks]``: the module's formula, by loops over runs."""
    (n_queries, _), (n_keys, _) = q.shape, k.shape
    first, base = n_keys - n_queries, (n_keys - n_queries) // rows
    mass = torch.zeros((n_keys - 1) // rows - base + 1, -(-n_keys // block), dtype=torch.float64)
    for run in range(base * rows // stride, -(-n_keys // stride)):
        here = [i for i in range(run * stride, (run + 1) * stride) if first <= i < n_keys]
        if not here:
            continue
        logits = []
        for other in range(run + 1):
            pairs = [(i, other * stride + stride - 1 - i % stride) for i in here]
            logits.append(sum(float(q[i - first].double() @ k[j].double()) for i, j in pairs if j < n_keys) / len(here))
        top = max(logits)
        weights = [math.exp(logit - top) for logit in logits]
        for other, weight in enumerate(weights):
            mass[run * stride // rows - base, other * stride // block] += weight / sum(weights) * len(here) / stride
    return mass


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_estimate_is_its_definition(case, monkeypatch):
    monkeypatch.setattr(antidiagonal, "SCORES", 64)  # several pieces
    n_queries, n_keys, *sizes = case
    q, k = torch.randn(2, n_queries, 4, 8), torch.randn(2, n_keys, 2, 8)
    got = estimate(q, k, *sizes)
    for batch in range(2):
        for head in range(4):
            expected = by_definition(q[batch, :, head], k[batch, :, head // 2], *sizes)
            torch.testing.assert_close(got[batch, head].double(), expected, rtol=1e-5, atol=1e-6)


def test_it_is_the_true_mass_where_runs_are_constant():
    stride, block, n = 4, 8, 64
    q, k = (torch.randn(1, n // stride, 1, 16).repeat_interleave(stride, 1) for _ in range(2))
    i = torch.arange(n)
    sees = i // stride <= (i // stride)[:, None]  # each query its whole run: the estimate knows no finer
    logits = (q[0, :, 0].double() @ k[0, :, 0].double().T).masked_fill(~sees, float("-inf"))
    true = logits.softmax(-1).view(n // block, block, n // block, block).sum((1, 3))
    got = estimate(q, k, block, block, stride)[0, 0].double() * stride
    torch.testing.assert_close(got, true, rtol=1e-5, atol=1e-6)


def test_chosen_blocks_hold_nearly_the_true_mass_of_smooth_inputs():
    n, block = 512, 16
    q, k = (
        torch.randn(1, n // 4, 2, 16).repeat_interleave(4, 1) * 0.7 + torch.randn(1, n, 2, 16) * 0.2 for _ in range(2)
    )
    mass = estimate(q, k, block, block, 4)
    tile = torch.arange(n // block)
    kept = heaviest_blocks(mass, (tile < tile[:, None]).expand(2, -1, -1), 0.8) | (tile == tile[:, None])
    logits = torch.einsum("bihd,bjhd->bhij", q, k).masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
    true = logits.softmax(-1).unflatten(2, (-1, block)).unflatten(4, (-1, block)).sum((3, 5)) / block
    held = (true * kept).sum(-1).mean()
    random = (true * (torch.rand(true.shape) < kept.float().mean())).sum(-1).mean()
    assert 0.7 < held < 0.9
    assert held > random + 0.15
