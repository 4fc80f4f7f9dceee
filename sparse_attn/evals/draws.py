"""Random choices that hang on their seed alone: the same on every machine, in every version of every library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Draws:
    """A stream of choices: SHA-256 of the seed's parts and a counter, eight bytes a draw.

    Args:
        parts: Strings, numbers and None; together they are the seed.

    >>> Draws("needle", 3).below(1000) == Draws("needle", 3).below(1000)
    True
    """

    def __init__(self, *parts: str | int | float | None) -> None:
        self._seed = repr(parts).encode()
        self._count = 0

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1; the bias is below n / 2^64."""
        digest = hashlib.sha256(self._seed + self._count.to_bytes(8)).digest()
        self._count += 1
        return int.from_bytes(digest[:8]) % n

    def choice(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All items in a drawn order."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = self.below(last + 1)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` of the items, none twice.

        Raises:
            ValueError: there are fewer.
        """
        if count > len(items):
            raise ValueError(f"count must be at most {len(items)}, the items there are, got {count}")
        return self.shuffled(items)[:count]

    def digits(self, count: int) -> str:
        """A number of that many digits, the first of them not 0."""
        return str(10 ** (count - 1) + self.below(9 * 10 ** (count - 1)))

    def uuid(self) -> str:
        """A random UUID (version 4, RFC 9562) in lower case."""
        number = self.below(2**64) << 64 | self.below(2**64)
        number = number & ~(0xF << 76) | 4 << 76  # the version
        number = number & ~(0b11 << 62) | 0b10 << 62  # the variant
        text = f"{number:032x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def fraction(self) -> float:
        """A number from 0 to just below 1."""
        return self.below(2**53) / 2**53
