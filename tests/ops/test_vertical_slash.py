"""Stripes and diagonals: hand-made ones are found exactly, and the union holds what was asked for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_attn.ops.vertical_slash import crossed_blocks, sampled_attention, stripes_and_diagonals


def hand_made(n: int, n_keys: int, stripes: dict[int, float], diagonals: dict[int, float]) -> torch.Tensor:
    weights = torch.zeros(1, n, n_keys)
    for r in range(n):
        for j, mass in stripes.items():
            weights[0, r, j] += mass
        for d, mass in diagonals.items():
            weights[0, r, n_keys - n + r - d] += mass
    return weights


def found(lines: tuple[torch.Tensor, torch.Tensor]) -> tuple[list[int], list[int]]:
    return lines[0][0].nonzero().flatten().tolist(), lines[1][0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("coverage", "stripes", "diagonals"),
    [(0.5, [7], []), (0.6, [7], [3]), (0.85, [7], [3]), (0.93, [7, 20], [3]), (1.0, [7, 20], [3, 11])],
)
def test_known_stripes_and_diagonals_are_found_exactly(coverage, stripes, diagonals):
    weights = hand_made(32, 64, {7: 0.5, 20: 0.08}, {3: 0.36, 11: 0.06})
    assert found(stripes_and_diagonals(weights, coverage - 1e-6)) == (stripes, diagonals)


def test_mass_that_is_kept_anyway_draws_no_line():
    weights = hand_made(8, 40, {7: 0.5}, {3: 0.5})
    i = torch.arange(32, 40)[:, None]
    window = (i - torch.arange(40) < 5) & (i >= torch.arange(40))
    assert found(stripes_and_diagonals(weights, 0.9, window)) == ([7], [])
    assert found(stripes_and_diagonals(weights, 0.5, window)) == ([], [])


@given(st.integers(1, 6), st.integers(6, 40), st.floats(0.05, 0.99), st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_the_union_holds_the_share_and_its_last_line_was_needed(n, n_keys, coverage, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(n, 2, 8, generator=generator), torch.randn(n_keys, 8, generator=generator)
    weights = sampled_attention(q, k, n_keys - n)
    distance = torch.arange(n_keys - n, n_keys)[:, None] - torch.arange(n_keys)
    expected = torch.einsum("ngd,sd->gns", q, k).masked_fill(distance < 0, float("-inf")).softmax(-1)
    torch.testing.assert_close(weights, expected)
    stripes, diagonals = stripes_and_diagonals(weights, coverage)
    for head in range(2):
        w, d = weights[head], distance.clamp(min=0)

        def held(columns, offsets, w=w, d=d):
            return float((w * (columns | offsets[d])).sum() / w.sum())

        lines = [("stripe", j, float(w[:, j].sum())) for j in stripes[head].nonzero().flatten().tolist()]
        lines += [("diagonal", x, float(w[distance == x].sum())) for x in diagonals[head].nonzero().flatten().tolist()]
        assert held(stripes[head], diagonals[head]) >= coverage - 1e-5
        kind, where, _ = min(lines, key=lambda line: line[2])
        fewer = stripes[head].clone(), diagonals[head].clone()
        fewer[kind == "diagonal"][where] = False
        assert held(*fewer) <= coverage + 1e-5


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_crossed_blocks_are_those_that_hold_a_key_of_a_line(n_keys, rows, block, seed):
    generator = torch.Generator().manual_seed(seed)
    stripes, diagonals = (torch.rand(2, n_keys, generator=generator) < 0.1 for _ in range(2))
    first = torch.arange(0, n_keys, rows)
    got = crossed_blocks(stripes, diagonals, first, rows=rows, block=block)
    for head in range(2):
        for tile, start in enumerate(first.tolist()):
            for number in range(-(-n_keys // block)):
                keys = range(number * block, min((number + 1) * block, n_keys))
                pairs = [(i, j) for i in range(start, start + rows) for j in keys]
                crossed = any(stripes[head, j] or (0 <= i - j < n_keys and diagonals[head, i - j]) for i, j in pairs)
                assert bool(got[head, tile, number]) == crossed
