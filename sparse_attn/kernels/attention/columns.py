"""Helpers in Triton: keys that all queries share, gathered into a short tensor of their own.

Of the gathered columns, a query sees those within `left` and `right` of its position (sides cut by causality or by
`within`) that its interval does not hold already.
"""

import triton
import triton.language as tl


@triton.jit
def column_keep(columns, i, low, high, left, right):
    """Which of the columns at these key positions each query at i, with interval low .. high, sees: ``[queries, columns]``."""
    at = columns[None, :]
    in_interval = (low[:, None] <= at) & (at < high[:, None])
    return (at > i[:, None] - left) & (at <= i[:, None] + right) & (in_interval == 0)


@triton.jit
def load_positions(positions, start, stop, COLUMNS: tl.constexpr):
    """Key positions of columns start .. start + COLUMNS; beyond stop a position that no query sees."""
    c = start + tl.arange(0, COLUMNS)
    return tl.load(positions + c, mask=c < stop, other=2147483647)
