"""Intervals and exact tests against figures derived by hand, and against enumeration of every outcome."""

import math
from itertools import product

import numpy as np
import pytest

from sparse_attn.evals.statistics import Paired, holm, mcnemar, near_chance, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_agrees_with_published_values(right, n, low, high):
    assert wilson(right, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_wilson_ends_solve_its_equation():
    for end in wilson(7, 20):
        assert abs(0.35 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 20), rel=1e-5)


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_shares_that_are_none(right, n):
    with pytest.raises(ValueError, match="right must be from 0 to n"):
        wilson(right, n)


def test_mcnemar_by_hand():
    assert mcnemar(10, 0) == pytest.approx(2 / 1024)
    assert mcnemar(0, 10) == mcnemar(10, 0)
    assert mcnemar(7, 1) == pytest.approx(2 * (1 + 8) / 256)
    assert mcnemar(4, 4) == 1.0


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([], []),
        ([0.3], [0.3]),
        ([0.01, 0.02], [0.02, 0.02]),  # 2 * 0.01, 1 * 0.02
        ([0.02, 0.03, 0.01, 0.005], [0.04, 0.04, 0.03, 0.02]),  # 4 * 0.005, 3 * 0.01, 2 * 0.02, and 0.03 rises to it
        ([0.6, 0.5, 0.9], [1.0, 1.0, 1.0]),
        ([0.04, 0.001], [0.04, 0.002]),
        ([0.03, 0.03], [0.06, 0.06]),
    ],
)
def test_holm_by_hand(given, corrected):
    assert holm(given) == pytest.approx(corrected)


@pytest.mark.parametrize(("worse", "better"), [(2, 0), (0, 1), (1, 1), (3, 0)])
def test_the_worst_case_is_that_of_every_outcome(worse, better):
    """Against a sum over all sequences of four samples, with outcomes ordered by a statistic worked out apart."""
    n, margin = 4, 0.1

    def statistic(b, c):
        grid = np.linspace(0, (1 - margin) / 2, 20_001)  # the likelihood's maximum, by search
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = (margin + grid) ** b * grid**c * (1 - margin - 2 * grid) ** (n - b - c)
        q = grid[likelihood.argmax()]
        return (b - c - n * margin) / math.sqrt(n * (2 * q + margin - margin**2))

    seen = statistic(worse, better)
    worst = 0.0
    for q in np.linspace(0, (1 - margin) / 2, 24):
        share = {1: margin + q, -1: q, 0: 1 - margin - 2 * q}
        total = 0.0
        for steps in product(share, repeat=n):
            if statistic(steps.count(1), steps.count(-1)) >= seen - 1e-3:
                total += math.prod(share[step] for step in steps)
        worst = max(worst, total)
    assert Paired(n, worse, better).p_exceeds(margin) == pytest.approx(worst, abs=1e-3)


def test_many_samples_agree_with_counting_them():
    counted, normal = Paired(400, 20, 8), Paired(401, 20, 8)
    for margin in (0.01, 0.05):
        assert normal.p_within(margin) == pytest.approx(counted.p_within(margin), abs=0.02)
        assert normal.p_exceeds(margin) == pytest.approx(counted.p_exceeds(margin), abs=0.02)


def test_all_equal_samples_rule_out_what_the_rule_of_three_says():
    for n in (15, 100, 300):
        assert Paired(n, 0, 0).detectable() == pytest.approx(1 - 0.05 ** (1 / n), rel=0.01)


def test_a_large_loss_exceeds_a_small_margin():
    paired = Paired(20, 12, 0)
    assert paired.difference == 0.6
    assert paired.p_exceeds(0.02) < 1e-3
    assert paired.p_within(0.02) == pytest.approx(1.0, abs=1e-3)
    assert paired.p_exceeds(0.6) > 0.3


@pytest.mark.parametrize("margin", [0.02, 0.1])
@pytest.mark.parametrize("differing", [0.0, 0.15, 0.5])
def test_at_the_margin_itself_false_alarms_are_rare(margin, differing):
    """With a true difference of exactly the margin, neither claim is made in more than 5 % of samples."""
    up, down = (max(differing, margin) + margin) / 2, (max(differing, margin) - margin) / 2
    random = np.random.default_rng(1)
    outcomes = random.multinomial(60, [up, down, 1 - up - down], size=400)
    seen = {}
    for worse, better, _ in outcomes:
        pair = (int(worse), int(better))
        if pair not in seen:
            paired = Paired(60, *pair)
            seen[pair] = (paired.p_exceeds(margin) < 0.05, paired.p_within(margin) < 0.05)
    alarms = np.array([seen[int(worse), int(better)] for worse, better, _ in outcomes]).mean(0)
    assert (alarms <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)).all()


def test_floors():
    assert near_chance(0, 15, 0.0)
    assert near_chance(8, 50, 0.0)  # 16 %
    assert not near_chance(15, 15, 0.0)
    assert not near_chance(3, 3, 0.0)
    assert near_chance(5, 20, 0.25)
