"""Numbers that say how large something is: one sentence for each that is none."""

from typing import Any


def check_size(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no integer of at least `least`.

    Raises:
        ValueError: names the argument, what came and what was expected.

    >>> check_size("heads", 0)
    Traceback (most recent call last):
    ValueError: heads must be at least 1, got 0
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
