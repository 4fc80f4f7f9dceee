"""Terms that keep what covers a given share of the attention: as many key blocks as a head and its input need.

For models as they are, without training, in prefill: a tile of `rows` queries chooses together, from an estimate that reads
all of them. So a query's choice hangs on later queries of its tile: no gradient may follow it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .chosen import ChosenBlocks
from .pattern import Pattern
from .terms import Sinks, Window, _set_count

COVERAGE = 0.94  # keeps SmolLM2's perplexity within 1% at 4K and 8K (benchmarks/NOTES.md)


class Covering(ChosenBlocks):
    """A term with a `coverage`: the share of the estimated attention mass that the chosen keys hold."""

    coverage: float

    @property
    def most_blocks(self) -> None:
        return None

    def _spelled(self) -> str:
        """As other terms, but always with the coverage, which decides what a model keeps."""
        name, _, others = super()._spelled().partition("(")
        given = repr(self.coverage)
        if not others.startswith(given):
            others = f"{given}, {others}" if others != ")" else f"{given})"
        return f"{name}({others}"


@dataclass(frozen=True, repr=False)
class CoverBlocks(Covering):
    """The fewest key blocks that, with the pattern's static part, hold a share `coverage` of a tile's attention mass.

    The mass is estimated from antidiagonals: the mean of the logits q[i] k[j] over the `stride` pairs with i + j constant
    in each square of stride x stride, under a softmax over such squares. Each query head chooses for itself.

    Args:
        coverage: Share of the estimated mass, above 0; 1 chooses every block.
        block: Keys of one block; a multiple of stride.
        rows: Positions that choose together; a multiple of stride.
        stride: Side of the squares: the estimate costs 1 / stride of the logits' products.

    Source: Xu et al. 2025, arXiv:2503.16428.
    """

    coverage: float = COVERAGE
    block: int = 64
    rows: int = 64
    stride: int = 8

    def _check(self) -> None:
        _set_coverage(self)
        for name in ("block", "rows", "stride"):
            _set_count(self, name, minimum=1)
        for name in ("block", "rows"):
            if getattr(self, name) % self.stride:
                raise ValueError(
                    f"CoverBlocks: {name} must be a multiple of stride {self.stride}, got {getattr(self, name)}"
                )


@dataclass(frozen=True, repr=False)
class VerticalSlash(Covering):
    """The fewest vertical stripes and diagonals that hold a share `coverage` of the last queries' attention mass.

    A stripe is one key for all queries, a diagonal one distance from query to key. Both are read off the exact attention
    of the last `queries` queries, for each query head, and realised as the blocks that they cross in each tile: narrow
    blocks waste little on a stripe.

    Args:
        coverage: Share of the sample's mass, above 0; 1 chooses every block.
        queries: Queries in the sample.
        block: Keys of one block.
        rows: Positions that read one row of blocks.

    Source: Jiang et al. 2024, arXiv:2407.02490.
    """

    coverage: float = 0.9
    queries: int = 64
    block: int = 16
    rows: int = 64

    def _check(self) -> None:
        _set_coverage(self)
        for name in ("queries", "block", "rows"):
            _set_count(self, name, minimum=1)


def auto(coverage: float = COVERAGE) -> Pattern:
    """What `sparsify(model, "auto")` attends through: the last 64 keys, the first 64, and the blocks that cover the rest.

    >>> auto(0.9)
    window(64) | sinks(64) | coverblocks(0.9)
    """
    return Window(64) | Sinks(64) | CoverBlocks(coverage)


def _set_coverage(term: Covering) -> None:
    given = term.coverage
    try:
        value = float("nan") if isinstance(given, bool | str) else float(given)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 < value <= 1:
        raise ValueError(f"{type(term).__name__}: coverage must be a share above 0 and at most 1, got {given!r}")
    object.__setattr__(term, "coverage", value)
