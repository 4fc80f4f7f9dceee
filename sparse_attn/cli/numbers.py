"""Options that are numbers: read and checked in one step, so that what is wrong is said with what came."""

from __future__ import annotations

import math
from collections.abc import Callable

import typer


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Reads a whole number from `least` to `most`."""
    wanted = (
        f"a whole number from {least:,} to {most:,}" if most is not None else f"a whole number of at least {least:,}"
    )

    def read(given: str) -> int:
        try:
            value = int(given)
        except ValueError:
            raise typer.BadParameter(f"expected {wanted}, got {given!r}") from None
        if value < least or (most is not None and value > most):
            raise typer.BadParameter(f"expected {wanted}, got {value}")
        return value

    return read


def temperature(given: str) -> float:
    """Reads a sampling temperature: 0, or a finite number that logits can be divided by."""
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if value != 0 and not 1e-3 <= value < math.inf:
        raise typer.BadParameter(f"expected 0, or a number of at least 0.001, got {given!r}")
    return value
