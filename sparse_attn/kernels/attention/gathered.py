"""Columns gathered for a launch: keys and values as short contiguous tensors, and which of them each block reads."""

from typing import NamedTuple

import triton
from torch import Tensor

from .geometry import Geometry


class Gathered(NamedTuple):
    """The columns of one call; all None and 0 if the pattern has none.

    Attributes:
        k, v: ``[B, C, Hkv, D]``, contiguous.
        positions: ``[C]`` key positions, int32.
        ranges: ``[query blocks, 4]`` which columns a block reads: start and end before its interval, and after it.
        left, right: How far before and after it a query sees columns.
    """

    k: Tensor | None = None
    v: Tensor | None = None
    positions: Tensor | None = None
    ranges: Tensor | None = None
    left: int = 0
    right: int = 0

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.k, self.v, self.positions, self.ranges

    @property
    def strides(self) -> tuple[int, int, int]:
        return (0, 0, 0) if self.k is None else (self.k.stride(0), self.k.stride(1), self.k.stride(2))

    def block(self, most: int) -> int:
        """Columns of a tile: few for few columns, so that four sinks do not cost a whole tile; 0 without columns."""
        return 0 if self.k is None else min(most, max(16, triton.next_power_of_2(self.k.shape[1])))


def gather_columns(k: Tensor, v: Tensor, where: Geometry, rows: int) -> Gathered:
    """The columns' keys and values, for kernels whose blocks have so many query rows."""
    columns = where.columns(k.device)
    if columns is None:
        return Gathered()
    keys, values = (x.index_select(1, columns.tokens) for x in (k, v))
    return Gathered(keys, values, columns.positions, where.column_ranges(rows, k.device), columns.left, columns.right)
