"""What a run of the demo found, as plain data: what the terminal, the HTML report and `--json` all tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .palette import SERIES_COLOURS


@dataclass(frozen=True)
class DemoResult:
    """One run.

    Attributes:
        about: What was run where, in words: name to value, in the order to be shown.
        rows: Each with `name`, `pattern` (None: dense), `full_layers`, `layers`; the first is dense.
        cells: Each with the fields of `evals.comparison.Cell`.
    """

    about: dict[str, str]
    rows: Sequence[dict[str, Any]]
    cells: Sequence[dict[str, Any]]

    @property
    def lengths(self) -> list[int]:
        return sorted({cell["length"] for cell in self.cells})

    @property
    def depths(self) -> list[float]:
        return sorted({needle["depth"] for cell in self.cells for needle in cell["needles"]})

    def cell(self, row: str, length: int) -> dict[str, Any]:
        return next(cell for cell in self.cells if (cell["row"], cell["length"]) == (row, length))

    def of_row(self, row: str) -> list[dict[str, Any]]:
        """A row's cells, shortest length first; a row need not have been read at every length."""
        return sorted((cell for cell in self.cells if cell["row"] == row), key=lambda cell: cell["length"])

    def at_length(self, length: int) -> list[dict[str, Any]]:
        """The cells of a length, in the order of the rows."""
        order = [row["name"] for row in self.rows]
        return sorted(
            (cell for cell in self.cells if cell["length"] == length), key=lambda cell: order.index(cell["row"])
        )

    def colour(self, row: str) -> str:
        names = [given["name"] for given in self.rows]
        return SERIES_COLOURS[names.index(row) % len(SERIES_COLOURS)]

    def as_json(self) -> dict[str, Any]:
        return {"about": self.about, "rows": list(self.rows), "cells": list(self.cells)}


def found(cell: dict[str, Any]) -> int:
    """How many of a cell's needles were found."""
    return sum(needle["found"] for needle in cell["needles"])


def describe_row(row: dict[str, Any]) -> str:
    """A row's pattern and layers in words.

    >>> describe_row({"pattern": "window(8)", "full_layers": [0, 1], "layers": 30})
    'window(8) in 28 of 30 layers; full attention in layers 0, 1'
    """
    if row["pattern"] is None:
        return f"full attention in all {row['layers']} layers, the model as it came"
    if not row["full_layers"]:
        return f"{row['pattern']} in all {row['layers']} layers"
    sparse = row["layers"] - len(row["full_layers"])
    full = spans(row["full_layers"])
    return f"{row['pattern']} in {sparse} of {row['layers']} layers; full attention in layers {full}"


def spans(numbers: Sequence[int]) -> str:
    """Whole numbers with runs drawn together.

    >>> spans([7, 1, 2, 3, 9, 10])
    '1-3, 7, 9, 10'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def summary(result: DemoResult) -> str:
    """The finding in two or three sentences, made from the run's own numbers."""
    length = result.lengths[-1]
    dense = result.rows[0]["name"]
    base = result.cell(dense, length)
    cells = {row["name"]: result.of_row(row["name"]) for row in result.rows}
    totals = {name: sum(map(found, own)) for name, own in cells.items()}
    asked = {name: sum(len(cell["needles"]) for cell in own) for name, own in cells.items()}
    sparse = [cell["row"] for cell in result.at_length(length)[1:]]
    best = max(sparse, key=lambda name: (totals[name] / asked[name], -result.cell(name, length)["kept_pairs"]))
    cell = result.cell(best, length)
    return (
        f"Dense attention found {totals[dense]} of {asked[dense]} needles. The best sparse row, “{best}”, found {totals[best]} of "
        f"{asked[best]}: at "
        f"{length:,} tokens it computed {cell['kept_pairs'] / base['kept_pairs']:.0%} of the pairs, needs "
        f"{cell['cache_bytes'] / base['cache_bytes']:.0%} of the KV cache and read the prompt in "
        f"{cell['prefill_seconds']:.1f} s instead of {base['prefill_seconds']:.1f} s, at a perplexity of "
        f"{cell['perplexity']:.1f} instead of {base['perplexity']:.1f}. "
        + ", ".join(f"“{name}”: {totals[name]} of {asked[name]}" for name in sparse if name != best)
        + " needles."
    )
