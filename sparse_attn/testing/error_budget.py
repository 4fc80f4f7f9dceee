"""The one measure of a wrong number: a result may err at most twice as much as plain PyTorch does.

    error(result, oracle64) <= 2 * error(plain PyTorch in the same dtype, oracle64) + floor

The budget comes from the data: where plain PyTorch loses three digits on an input, so may we; where it is exact, so
must we be, up to a floor that is stated. The error is the largest absolute difference.
"""

import torch
from torch import Tensor

# 64 roundings of the accumulator (float32; float64 for float64), for an oracle whose largest value is 1. Needed where plain
# PyTorch happens to be exact: over one key its softmax has weight 1 and gradient 0, while exp(logit - lse) and the
# difference of two sums over the head dim, as any tiled backward pass computes them, miss that by some roundings.
FLOORS: dict[torch.dtype, float] = {
    torch.float64: 2.0**-47,
    torch.float32: 2.0**-18,
    torch.bfloat16: 2.0**-18,
    torch.float16: 2.0**-18,
}


def max_error(got: Tensor, oracle: Tensor) -> float:
    """Largest absolute difference from the oracle over the elements that are finite in both; 0 if there are none."""
    difference = (got.detach().to("cpu", torch.float64) - oracle.detach().to("cpu", torch.float64)).abs()
    finite = difference[torch.isfinite(difference)]
    return finite.max().item() if finite.numel() else 0.0


def assert_within_budget(
    name: str, got: Tensor, oracle: Tensor, baseline: Tensor, *, floor: float | None = None, factor: float = 2.0
) -> None:
    """Fail unless ``got`` errs at most ``factor`` times as much as ``baseline`` does, plus ``floor``.

    Args:
        name: What is judged, for the message: "out", "lse", "dk" ...
        got: The result under test.
        oracle: The same in float64, from code that shares nothing with what computed ``got``.
        baseline: The same from plain PyTorch in ``got``'s dtype. Elements where it is not finite (a softmax over no
            keys) set no budget; ``got`` is judged there all the same.
        floor: Absolute allowance; if None ``FLOORS[got.dtype]``, times the oracle's largest value where that exceeds 1.
        factor: How much worse than plain PyTorch is still right.

    Raises:
        AssertionError: the budget is exceeded, ``got`` is not finite where the oracle is, or differs where it is not.
        ValueError: shapes or dtypes disagree, so that nothing would be judged.

    >>> import torch
    >>> x = torch.tensor([1.0, 3.0])
    >>> assert_within_budget("third", x / 3, oracle=x.double() / 3, baseline=x * (1 / 3))
    >>> assert_within_budget("third", x * 0.333, oracle=x.double() / 3, baseline=x * (1 / 3))
    Traceback (most recent call last):
    ...
    AssertionError: third errs by 1.000e-03 at (1,): got 0.9990000128746033, oracle 1.0; allowed ...
    """
    _check_comparable(name, got, oracle, baseline)
    got64, oracle64 = (tensor.detach().to("cpu", torch.float64) for tensor in (got, oracle))
    if floor is None:
        floor = FLOORS[got.dtype] * max(1.0, max_error(oracle64, torch.zeros_like(oracle64)))

    finite = torch.isfinite(oracle64)
    # inf == inf and nan != nan: an oracle's NaN is an error of the test, and fails here as one.
    wrong = torch.where(finite, ~torch.isfinite(got64), got64 != oracle64)
    if wrong.any():
        where = _first(wrong)
        raise AssertionError(
            f"{name} has {int(wrong.sum())} of {wrong.numel()} elements that are not finite as the oracle's are; the "
            f"first at {where}: got {got64[where].item()}, oracle {oracle64[where].item()}"
        )

    error, baseline_error = max_error(got, oracle), max_error(baseline, oracle)
    allowed = factor * baseline_error + floor
    if error > allowed:
        difference = torch.where(finite, (got64 - oracle64).abs(), 0.0)
        where = _first(difference == error)
        raise AssertionError(
            f"{name} errs by {error:.3e} at {where}: got {got64[where].item()}, oracle {oracle64[where].item()}; "
            f"allowed {allowed:.3e} = {factor:g} x {baseline_error:.3e} (plain PyTorch in {got.dtype}) + {floor:.1e}"
        )


def _check_comparable(name: str, got: Tensor, oracle: Tensor, baseline: Tensor) -> None:
    if not got.shape == oracle.shape == baseline.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (got, oracle, baseline))
        raise ValueError(f"{name}: the shapes of result, oracle and baseline differ: {shapes}")
    if oracle.dtype != torch.float64:
        raise ValueError(f"{name}: the oracle must be computed in float64, not {oracle.dtype}")
    if baseline.dtype != got.dtype:
        raise ValueError(f"{name}: the baseline must have the result's dtype {got.dtype}, not {baseline.dtype}")


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())
