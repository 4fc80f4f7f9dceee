"""The judge itself is judged: it passes what is as good as plain PyTorch and fails what is worse, and says where."""

import pytest
import torch

from sparse_attn.testing import FLOORS, assert_within_budget, max_error

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=str)
def sum_of_products(request):
    """A float64 oracle and what plain PyTorch makes of it in the dtype."""
    a, b = torch.randn(8, 64, dtype=torch.float64), torch.randn(64, 8, dtype=torch.float64)
    a, b = a.to(request.param), b.to(request.param)
    return a.double() @ b.double(), a @ b


def test_plain_pytorch_is_within_its_own_budget(sum_of_products):
    oracle, plain = sum_of_products
    assert_within_budget("product", plain, oracle, plain)


def test_three_times_the_error_is_too_much(sum_of_products):
    oracle, plain = sum_of_products
    worse = oracle + 3 * (plain.double() - oracle).abs().max() + 2 * FLOORS[plain.dtype] * oracle.abs().max()
    with pytest.raises(AssertionError, match="product errs by"):
        assert_within_budget("product", worse.to(plain.dtype), oracle, plain)


def test_an_exact_baseline_leaves_the_floor_only():
    oracle = torch.ones(3, dtype=torch.float64)
    plain = torch.ones(3)
    floor = FLOORS[torch.float32]
    assert_within_budget("ones", plain + 0.5 * floor, oracle, plain)
    with pytest.raises(AssertionError, match=r"at \(0,\)"):
        assert_within_budget("ones", plain + 2 * floor, oracle, plain)
    assert_within_budget("ones", plain + 2 * floor, oracle, plain, floor=3 * floor)
    assert_within_budget("tens", 10 * plain + 5 * floor, 10 * oracle, 10 * plain)
    assert_within_budget("tenths", 0.1 * plain + 0.5 * floor, 0.1 * oracle, 0.1 * plain)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_fails(bad):
    oracle = torch.zeros(2, 3, dtype=torch.float64)
    got = torch.zeros(2, 3)
    got[1, 2] = bad
    with pytest.raises(AssertionError, match=r"1 of 6 elements .* the first at \(1, 2\)"):
        assert_within_budget("out", got, oracle, torch.zeros(2, 3))


def test_an_empty_row_has_lse_minus_infinity_and_nothing_else():
    oracle = torch.tensor([0.0, float("-inf")], dtype=torch.float64)
    assert_within_budget("lse", oracle.float(), oracle, oracle.float())
    with pytest.raises(AssertionError, match="oracle -inf"):
        assert_within_budget("lse", torch.tensor([0.0, -1e38]), oracle, oracle.float())


def test_a_baseline_of_nan_sets_no_budget():
    oracle = torch.zeros(2, dtype=torch.float64)
    baseline = torch.tensor([0.0, float("nan")])  # a softmax over no keys
    assert_within_budget("out", torch.zeros(2), oracle, baseline)
    with pytest.raises(AssertionError, match=r"at \(1,\)"):
        assert_within_budget("out", torch.tensor([0.0, 1e-3]), oracle, baseline)


@pytest.mark.parametrize(
    ("got", "oracle", "baseline", "message"),
    [
        (torch.zeros(2), torch.zeros(3, dtype=torch.float64), torch.zeros(2), "baseline differ"),
        (torch.zeros(2), torch.zeros(2), torch.zeros(2), "oracle must be computed in float64"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(2).bfloat16(), "result's dtype"),
    ],
    ids=["shape", "oracle", "baseline"],
)
def test_what_cannot_be_compared_is_refused(got, oracle, baseline, message):
    with pytest.raises(ValueError, match=message):
        assert_within_budget("out", got, oracle, baseline)


def test_error_of_nothing_is_zero():
    assert max_error(torch.zeros(0), torch.zeros(0, dtype=torch.float64)) == 0.0
