"""A long text with facts hidden in it, put together from tokens: an exact length, and every token's origin known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from .reader import TextSide


@dataclass(frozen=True)
class Haystack:
    """A prompt with facts in a text.

    Attributes:
        tokens: The whole prompt.
        text: Positions of the text's own tokens: before the first fact, between facts, and after the last.
        facts: Positions of each fact's tokens, in the order in which the facts were given.
    """

    tokens: tuple[int, ...]
    text: tuple[range, ...]
    facts: tuple[range, ...]


def hide(
    side: TextSide,
    paragraphs: Sequence[Sequence[int]],
    facts: Sequence[tuple[float, str]],
    *,
    length: int,
    head: str,
    tail: str,
) -> Haystack:
    """A prompt of exactly `length` tokens: the head, a text with facts in it, the tail.

    Args:
        side: Turns text into tokens.
        paragraphs: The text's paragraphs as tokens, each with the blank line after it.
        facts: Each with its depth: 0 before the text, 1 after it. It is moved to the nearest end of a paragraph, and facts
            of one place stand in the order given.
        length: Tokens of the whole prompt.
        head, tail: What stands before and after, chat template included.

    Raises:
        ValueError: a depth outside 0 to 1, a text that is too short, or a length that has no room for any text.
    """
    for depth, _ in facts:
        if not 0 <= depth <= 1:
            raise ValueError(f"depth must be from 0 to 1, got {depth}")
    first, last = side.encode(head), side.encode(tail)
    encoded = [side.encode(fact) for _, fact in facts]
    room = length - len(first) - len(last) - sum(map(len, encoded))
    if room < 1:
        raise ValueError(f"length must leave room for text: the prompt's frame and needle take {length - room} tokens, "
                         f"got {length}")  # fmt: skip
    ends = list(accumulate(map(len, paragraphs), initial=0))
    if ends[-1] < room:
        raise ValueError(f"the text has {ends[-1]:,} tokens, but a prompt of {length:,} needs {room:,} of them")
    text = [token for paragraph in paragraphs for token in paragraph][:room]
    fitting = [end for end in ends if end <= room]
    cuts = [min(fitting, key=lambda end: abs(end - depth * room)) for depth, _ in facts]

    tokens, done = list(first), 0
    spans: list[range] = []
    places = [range(0)] * len(facts)
    for index in sorted(range(len(facts)), key=lambda index: (cuts[index], index)):
        _extend(tokens, text[done : cuts[index]], spans)
        done = cuts[index]
        places[index] = range(len(tokens), len(tokens) + len(encoded[index]))
        tokens += encoded[index]
    _extend(tokens, text[done:], spans)
    return Haystack((*tokens, *last), tuple(spans), tuple(places))


def _extend(tokens: list[int], part: list[int], spans: list[range]) -> None:
    spans.append(range(len(tokens), len(tokens) + len(part)))
    tokens += part


def spread(depth: float, count: int, width: float) -> list[float]:
    """Depths of `count` facts, evenly over a stretch of the text that is `width` long, around `depth` or up to an end.

    >>> spread(0.5, 3, 0.5), spread(0.0, 2, 0.25), spread(0.9, 1, 0.5)
    ([0.25, 0.5, 0.75], [0.0, 0.25], [0.9])
    """
    if count == 1:
        return [depth]
    start = min(max(depth - width / 2, 0.0), 1.0 - width)
    return [start + width * number / (count - 1) for number in range(count)]
