"""`--fail-if-worse` over several comparisons: outcomes worked out by hand, from p values that are given."""

import pytest

from sparse_attn.evals.verdict import FAIL, INCONCLUSIVE, PASS, judge


def compared(name, exceeds, within, floor=False):
    return {
        "row": name, "task": "needle", "prompt": "plain", "n": 20, "difference": 0.25, "detectable_margin": 0.14,
        "p_exceeds": exceeds, "p_within": within, "floor": floor, "words": "near chance",
    }  # fmt: skip


def outcomes(*comparisons):
    found, verdict = judge(comparisons, 0.02)
    return [one["outcome"] for one in found], verdict


def test_one_comparison_is_not_corrected():
    assert outcomes(compared("a", 0.04, 0.9)) == (
        [FAIL],
        {"margin": 0.02, "status": FAIL, "correction": None,
         "reasons": ["a, needle: worse than dense by 25.0%, more than 2.0% (p = 0.04)"]},
    )  # fmt: skip


def test_among_two_the_smaller_p_counts_twice():
    found, verdict = outcomes(compared("a", 0.04, 0.9), compared("b", 0.5, 0.03))
    assert (found, verdict["status"]) == ([INCONCLUSIVE, PASS], INCONCLUSIVE)
    assert "among 2 comparisons it does not (p = 0.08 after Holm-Bonferroni, 0.04 alone)" in verdict["reasons"][0]
    assert verdict["correction"].startswith("2 comparisons were judged")


def test_the_steps_go_down():
    """0.01 x 3 and 0.02 x 2 stay below 5 %, and 0.045 x 1 rises to neither: Bonferroni's x 3 would keep only the first."""
    found, verdict = outcomes(compared("a", 0.02, 0.9), compared("b", 0.045, 0.9), compared("c", 0.01, 0.9))
    assert found == [FAIL, FAIL, FAIL]
    assert [reason.split("(")[1].split(" after")[0] for reason in verdict["reasons"]] == [
        "p = 0.04", "p = 0.045", "p = 0.03",
    ]  # fmt: skip


def test_a_step_that_fails_stops_those_after_it():
    found, _ = outcomes(compared("a", 0.03, 0.9), compared("b", 0.049, 0.9), compared("c", 0.01, 0.9))
    assert found == [INCONCLUSIVE, INCONCLUSIVE, FAIL]  # 3 x 0.01 = 0.03; 2 x 0.03 = 0.06, and 0.049 is raised to it


def test_all_must_show_that_they_are_no_worse_and_none_is_corrected():
    assert outcomes(compared("a", 0.9, 0.04), compared("b", 0.9, 0.049))[1]["status"] == PASS
    assert outcomes(compared("a", 0.9, 0.04), compared("b", 0.9, 0.051))[1]["status"] == INCONCLUSIVE


def test_what_is_at_the_floor_is_not_counted():
    found, verdict = outcomes(compared("a", 0.04, 0.9), compared("b", 0.001, 0.9, floor=True))
    assert (found, verdict["correction"]) == ([FAIL, INCONCLUSIVE], None)
    assert verdict["reasons"][1] == "b, needle: inconclusive. near chance"


def test_nothing_to_judge_is_inconclusive():
    assert judge([], 0.02)[1]["status"] == INCONCLUSIVE


@pytest.mark.parametrize("count", [2, 20])
def test_false_alarms_among_many_stay_rare(count):
    """With every pattern exactly at the margin, uniform p values: some claim of 'worse' in at most 5 % of evaluations."""
    import random

    draws = random.Random(count)
    runs = [[compared(str(i), draws.random(), 0.9) for i in range(count)] for _ in range(2000)]
    alarms = sum(judge(run, 0.02)[1]["status"] == FAIL for run in runs) / len(runs)
    assert alarms <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5
    alone = sum(any(one["p_exceeds"] < 0.05 for one in run) for run in runs) / len(runs)
    assert alone > 0.08  # what it would be without the correction
