"""What the CPU engine reads: row blocks, and for each the pieces of keys that its rows look at.

A schedule is any object that can be iterated more than once and yields `RowBlock`s. It is walked once forward and once
backward, and should build its masks as it goes, so that they are never all held in memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from jaxtyping import Bool, Int
from torch import Tensor

SEQUENCE = 0  # a piece's keys are positions of k and v
EXTRA = 1  # a piece's keys are rows of the extra keys, flattened to [B, E, Hkv, D]


@dataclass(frozen=True, eq=False)
class Piece:
    """Some keys, and which rows of the block see which of them.

    Splitting an interval into a masked left edge, an unmasked middle and a masked right edge is what makes masks cheap:
    the engine joins touching slices again before it multiplies, and pays for a mask only on the columns that have one.

    Attributes:
        keys: Positions, as a slice with explicit `0 <= start < stop` and any positive step, or as indices. Indices may
            not repeat within one piece.
        keep: True where row r of the block sees key n of the piece. None: every row sees every key.
        source: `SEQUENCE` or `EXTRA`.
    """

    keys: slice | Int[Tensor, " N"]
    keep: Bool[Tensor, "R N"] | None = None
    source: int = SEQUENCE

    def __len__(self) -> int:
        if isinstance(self.keys, slice):
            return len(range(self.keys.start, self.keys.stop, self.keys.step or 1))
        return self.keys.shape[0]


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Query rows that share pieces; a row's pieces may name a key once only, over all row blocks.

    Attributes:
        rows: Query rows, as a slice with explicit `0 <= start < stop` and any positive step. A row may stand in several
            row blocks (a dilated pass after the interval's, say): their results are merged by their LSE. A row in none
            gets output 0 and LSE -inf.
        pieces: The keys that the rows look at, in any order and of any length: long ones are cut by the engine.
    """

    rows: slice
    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return len(range(self.rows.start, self.rows.stop, self.rows.step or 1))


Schedule = Iterable[RowBlock]


@dataclass(frozen=True, eq=False)
class Assignment:
    """A schedule for some batch examples and some KV heads; without limits, for all of them.

    Attributes:
        schedule: The row blocks.
        heads: KV heads that follow it, as a slice.
        batch: Batch examples that follow it, as a slice.
    """

    schedule: Schedule
    heads: slice = field(default_factory=lambda: slice(None))
    batch: slice = field(default_factory=lambda: slice(None))
