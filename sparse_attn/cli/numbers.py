"""Options that are numbers: read and checked in one step, so that what is wrong is said with what came."""

from __future__ import annotations

import math
import re
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


_LENGTH = re.compile(r"(\d[\d_,]*|\d*\.\d+|\d+\.\d*)\s*([kKmM]?)(?:i?[bB])?")
_MEMORY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kKmMgGtT]?)(i?)[bB]?")
_MOST_TOKENS = 1 << 40


def length(given: str) -> int:
    """Reads a number of tokens; k and m are binary, as contexts are named: 256k is 262,144.

    >>> length("256k"), length("1m"), length("100,000")
    (262144, 1048576, 100000)
    """
    match = _LENGTH.fullmatch(str(given).strip())
    value = math.nan
    if match is not None:
        value = float(match[1].replace(",", "").replace("_", "")) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()]
    if not 1 <= value <= _MOST_TOKENS or value != int(value):
        raise typer.BadParameter(f"expected a number of tokens such as 32768, 256k or 1m, got {given!r}")
    return int(value)


def memory(given: str) -> int:
    """Reads bytes of memory: GB is 10^9, GiB 2^30.

    >>> memory("80GB"), memory("24GiB"), memory("1.5 TB")
    (80000000000, 25769803776, 1500000000000)
    """
    match = _MEMORY.fullmatch(str(given).strip())
    value = 0.0
    if match is not None:
        power = " kmgt".index(match[2].lower()) if match[2] else 0
        value = float(match[1]) * (1024 if match[3] else 1000) ** power
    if not 1 <= value <= 1e18:
        raise typer.BadParameter(f"expected an amount of memory such as 80GB or 24GiB, got {given!r}")
    return int(value)


def share(given: str) -> float:
    """Reads a share above 0 and at most 1."""
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise typer.BadParameter(f"expected a number above 0 and at most 1, got {given!r}")
    return value


def one_of(*known: str) -> Callable[[str], str]:
    """Reads one of a few words."""

    def read(given: str) -> str:
        if given not in known:
            raise typer.BadParameter(f"expected {' or '.join(known)}, got {given!r}")
        return given

    return read
