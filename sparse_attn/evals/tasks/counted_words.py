"""Lists of words in which some stand more often than others: what both aggregation tasks are built from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from ..book import book_text
from ..corpus import Corpus
from .sample import Request, asked
from .token_pieces import newline_token


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Words of five to nine letters in the book, each once, in the order of the alphabet; none holds another."""
    found = sorted(set(re.findall(r"(?<![\w'])[a-z]{5,9}(?![\w'])", book_text())))
    kept: list[str] = []
    stems: set[str] = set()
    for word in found:  # one of 'house', 'houses': a longer word would count as naming the shorter
        if word[:5] not in stems:
            stems.add(word[:5])
            kept.append(word)
    whole = set(kept)
    return tuple(word for word in kept if not any(word[a:b] in whole for a, b in _inner(len(word))))


def _inner(length: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(length) for b in range(a + 5, length + 1) if b - a < length]


def scattered(count: int, order: int) -> list[int]:
    """Places 0 to count - 1 in an order that hangs on the seed `order`: sorted by the raw bits of a PCG64 generator."""
    return np.argsort(np.random.PCG64(order).random_raw(count), kind="stable").tolist()


def fill_list(
    corpus: Corpus,
    request: Request,
    *,
    opening: str,
    question: str,
    items: Callable[[int], Sequence[str]],
    least: int,
) -> tuple[int, ...]:
    """The prompt with as many items as fit into its length; newlines fill what is left.

    Args:
        items: Gives a list of about that many items as text, in their order.
        least: Items below which the task makes no sense.

    Raises:
        ValueError: fewer than `least` fit.
    """
    side = corpus.side
    before, after = side.chat_frame()
    head, tail = side.encode(before + opening), side.encode("\n\n" + asked(question, request) + after)
    room = request.length - len(head) - len(tail)
    encoded: dict[str, list[int]] = {}

    def tokens(count: int) -> list[int]:
        listed: list[int] = []
        for item in items(count):
            if item not in encoded:
                encoded[item] = side.encode(item)
            listed += encoded[item]
        return listed

    fits, too_many = least, max(room, least) + 1
    body = tokens(fits)
    if len(body) > room:
        raise ValueError(
            f"length must be at least {request.length + len(body) - room:,} for this list, got {request.length:,}"
        )
    while too_many - fits > 1:  # by bisection: a list of more items never takes fewer tokens
        middle = (fits + too_many) // 2
        if len(longer := tokens(middle)) <= room:
            fits, body = middle, longer
        else:
            too_many = middle
    return (*head, *body, *[newline_token(side)] * (room - len(body)), *tail)
