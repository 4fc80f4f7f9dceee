"""Sizes in words. GB is 10^9 bytes, as data sheets count; KiB and MiB are binary, as caches are counted."""

from __future__ import annotations


def gb(count: float) -> str:
    """Bytes as decimal GB, or MB below one.

    >>> gb(86_830_000_000), gb(123_456_789), gb(0)
    ('86.8 GB', '123 MB', '0')
    """
    if count >= 999.5 * 10**6:
        return f"{count / 10**9:,.1f} GB"
    return f"{count / 10**6:,.0f} MB" if count >= 10**6 else kib(count)


def kib(count: float) -> str:
    """Bytes as binary KiB or MiB.

    >>> kib(98304), kib(512), kib(65 * 2**20)
    ('96 KiB', '512 B', '65 MiB')
    """
    if not count:
        return "0"
    for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{_short(count / size)} {unit}"
    return f"{_short(count)} B"


def parameters(count: int) -> str:
    """A number of parameters.

    >>> parameters(30_532_122_624), parameters(134_515_008)
    ('30.5 B', '135 M')
    """
    if count >= 999.5 * 10**6:
        return f"{count / 10**9:,.1f} B"
    return f"{count / 10**6:,.0f} M" if count >= 10**6 else f"{count:,}"


def tokens(count: int | None, none: str = "no bound") -> str:
    """A number of tokens."""
    return none if count is None else f"{count:,}"


def seconds(value: float) -> str:
    """A time.

    >>> seconds(0.0123), seconds(12.3), seconds(400)
    ('12.3 ms', '12.3 s', '6.7 min')
    """
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:,.1f} min"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"
