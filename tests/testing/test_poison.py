"""Tests run on poisoned memory, and leave PyTorch as they found it."""

import pytest
import torch

from sparse_attn.testing import poisoned_allocations

ALLOCATIONS = {
    "empty": lambda: torch.empty(3),
    "empty-bf16": lambda: torch.empty(3, dtype=torch.bfloat16),
    "empty_like": lambda: torch.empty_like(torch.zeros(3)),
    "new_empty": lambda: torch.zeros(1).new_empty(3),
    "empty_strided": lambda: torch.empty_strided((2, 2), (1, 2)),
}


@pytest.mark.parametrize("allocate", ALLOCATIONS.values(), ids=ALLOCATIONS.keys())
def test_every_test_runs_on_poisoned_memory(allocate):
    assert allocate().isnan().all()


def test_a_full_write_leaves_no_poison():
    out = torch.empty(4, 4)
    torch.mm(torch.ones(4, 2), torch.ones(2, 4), out=out)
    assert (out == 2).all()


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_mode_before_is_restored(mode):
    before = torch.get_deterministic_debug_mode()
    try:
        torch.set_deterministic_debug_mode(mode)
        with pytest.raises(KeyError), poisoned_allocations():
            raise KeyError
        assert torch.get_deterministic_debug_mode() == mode
    finally:
        torch.set_deterministic_debug_mode(before)
