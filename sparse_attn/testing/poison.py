"""Uninitialised memory that shows itself: an element that a kernel forgot to write is NaN, not an old right answer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Within it, every uninitialised allocation is filled with NaN (integers: the largest value).

    That holds for ``torch.empty`` and all its relatives, on every device, wherever PyTorch allocates. It rides on the
    deterministic mode; operations that have no deterministic form only warn. On leaving, all is as before.

    >>> import torch
    >>> with poisoned_allocations():
    ...     torch.empty(2)
    tensor([nan, nan])
    """
    mode = torch.get_deterministic_debug_mode()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
