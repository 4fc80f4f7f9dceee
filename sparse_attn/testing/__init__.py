"""What the tests and benchmarks judge by: the error budget, and memory that starts as NaN.

Whoever writes a kernel or an adapter of their own can judge it with the same two tools.
"""

from sparse_attn.testing.error_budget import FLOORS, assert_within_budget, max_error
from sparse_attn.testing.poison import poisoned_allocations

__all__ = ["FLOORS", "assert_within_budget", "max_error", "poisoned_allocations"]
