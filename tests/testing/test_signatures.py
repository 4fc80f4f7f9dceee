"""Signatures are checked in every test, and the check lets a function's own error speak first."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from sparse_attn.testing.signatures import check_on_return


@jaxtyped(typechecker=check_on_return)
def scaled(x: Float[Tensor, "B D"], scale: float, *, transposed: bool = False) -> Float[Tensor, "B D"]:
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    return x.T * scale if transposed else x * scale


def test_what_fits_passes():
    assert scaled(torch.ones(2, 3), 2).shape == (2, 3)


def test_a_result_of_another_shape_fails():
    with pytest.raises(TypeCheckError, match="return value"):
        scaled(torch.ones(2, 3), 2.0, transposed=True)


def test_a_bad_argument_fails_if_the_function_lets_it_pass():
    with pytest.raises(TypeCheckError):
        scaled(torch.ones(2, 3, 4), 2.0)


def test_the_functions_own_error_speaks_first():
    with pytest.raises(ValueError, match="scale must be positive"):
        scaled(torch.ones(2, 3, 4), -1.0)


def test_the_hook_is_on():
    from sparse_attn import reference

    wrapped = reference.masked_attention
    assert wrapped.__wrapped__.__module__ == wrapped.__module__
