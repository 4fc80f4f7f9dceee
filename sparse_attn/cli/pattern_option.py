"""--pattern and --coverage: the text of a pattern, or `auto`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..patterns import Pattern, parse
from ..patterns.covering import COVERAGE, auto
from .numbers import share

NAME = "auto"

Coverage = Annotated[
    float | None,
    typer.Option(
        parser=share,
        metavar="SHARE",
        help=f"Of the pattern auto: the share of attention to keep, at most 1; {COVERAGE:g} if left out.",
        show_default=False,
    ),
]


def read_pattern(text: str, coverage: float | None = None) -> Pattern:
    """The pattern that a text describes; `auto`: what `sparsify(model, "auto", coverage=coverage)` attends through.

    Raises:
        ValueError: text that is no pattern, or a coverage outside (0, 1].

    >>> read_pattern("auto", 0.9), read_pattern("window(8)")
    (window(64) | sinks(64) | coverblocks(0.9), window(8))
    """
    if text.strip().lower() != NAME:
        return parse(text)
    return auto() if coverage is None else auto(coverage)


def check_coverage(texts: list[str], coverage: float | None) -> None:
    """Refuse --coverage without `auto` among the patterns.

    Raises:
        ValueError: so.
    """
    if coverage is not None and not any(text.strip().lower() == NAME for text in texts):
        raise ValueError(f"--coverage {coverage} is for --pattern auto, but that was not given")
