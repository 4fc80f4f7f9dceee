"""Options that are lists: split at commas, and checked in one step."""

from __future__ import annotations

import re
from collections.abc import Callable

import typer

_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}


def names(given: str) -> list[str]:
    """Reads names with commas between them."""
    found = [part.strip() for part in given.split(",") if part.strip()]
    if not found:
        raise typer.BadParameter(f"expected names with commas between them, got {given!r}")
    return list(dict.fromkeys(found))


def lengths(given: str) -> list[int]:
    """Reads numbers of tokens: 1000, 4k (4,096), 1m."""
    found = []
    for part in given.split(","):
        number = re.fullmatch(r"\s*(\d{1,9})([km]?)\s*", part, re.IGNORECASE)
        if number is None or int(number[1]) == 0:
            raise typer.BadParameter(f"expected numbers of tokens such as 1k,2k,4000, got {given!r}")
        found.append(int(number[1]) * _UNITS[number[2].lower()])
    return sorted(set(found))


def margin(given: str) -> float:
    """Reads a share between 0 and 1: 2%, or 0.02."""
    text = given.strip()
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise typer.BadParameter(f"expected a share above 0% and below 100%, such as 2% or 0.02, got {given!r}")
    return value


def patterns(given: list[str]) -> list[str]:
    """Patterns with commas between them; a comma inside brackets belongs to its pattern.

    >>> patterns(["window(8, 2), full()", "sinks(4)"])
    ['window(8, 2)', 'full()', 'sinks(4)']
    """
    found = []
    for text in given:
        depth, start = 0, 0
        for at, character in enumerate(text):
            depth += (character in "([") - (character in ")]")
            if character == "," and depth == 0:
                found.append(text[start:at].strip())
                start = at + 1
        found.append(text[start:].strip())
    return found


def one_of(*choices: str) -> Callable[[str], list[str]]:
    """Reads names that must be among the choices."""

    def read(given: str) -> list[str]:
        found = names(given)
        if unknown := [name for name in found if name not in choices]:
            raise typer.BadParameter(f"expected some of {', '.join(choices)}, got {unknown[0]!r}")
        return found

    return read


def layer_numbers(text: str | None) -> frozenset[int]:
    """What --full-layers names, e.g. '0,5,11'; nothing where it is not given.

    Raises:
        ValueError: anything but numbers from 0 on.
    """
    try:
        numbers = frozenset(int(part) for part in text.split(",")) if text is not None else frozenset()
    except ValueError:
        raise ValueError(
            f"--full-layers must be layer numbers with commas between them, e.g. '0,5,11', got {text!r}"
        ) from None
    if negative := [number for number in numbers if number < 0]:
        raise ValueError(f"--full-layers must not be negative, got {negative[0]}")
    return numbers
