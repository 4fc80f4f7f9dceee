"""`merge` against its definition, number by number."""

import math

import torch

from sparse_attn import merge
from sparse_attn.reference import merge_partial
from sparse_attn.testing import assert_within_budget


def parts(dtype: torch.dtype, n_parts: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    outs = [torch.randn(2, 5, 3, 8).to(dtype) for _ in range(n_parts)]
    lses = [torch.randn(2, 5, 3) * 10 for _ in range(n_parts)]
    lses[0][0, 0] = -math.inf  # no keys in this part
    for lse in lses:
        lse[1, 2] = -math.inf  # no keys in any part
    return outs, lses


def test_merging_is_the_definition() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        outs, lses = parts(dtype)
        out, lse = merge(outs, lses)
        oracle_out, oracle_lse = merge_partial(outs, lses)
        assert_within_budget("out", out, oracle_out, oracle_out.to(dtype))
        assert_within_budget("lse", lse, oracle_lse, oracle_lse.float())
        assert (out[1, 2] == 0).all()
        assert (lse[1, 2] == -math.inf).all()


def test_merging_is_associative_and_forgets_the_order() -> None:
    outs, lses = parts(torch.float64)
    lses = [lse.double() for lse in lses]
    whole = merge(outs, lses)
    first = merge(outs[:2], lses[:2])
    for again in (merge([first[0], outs[2]], [first[1], lses[2]]), merge(outs[::-1], lses[::-1])):
        torch.testing.assert_close(again, whole, rtol=1e-13, atol=1e-13)


def test_gradients_are_exact_and_empty_rows_pass_none() -> None:
    outs, lses = parts(torch.float64, n_parts=2)
    leaves = [tensor.double().requires_grad_() for tensor in (*outs, *lses)]
    out, lse = merge(leaves[:2], leaves[2:])
    (out.sum() + lse[torch.isfinite(lse)].sum()).backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)
    assert all((leaf.grad[1, 2] == 0).all() for leaf in leaves)
    small = [torch.randn(1, 2, 1, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    logs = [torch.randn(1, 2, 1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: merge([a, b], [c, d]), [*small, *logs])
