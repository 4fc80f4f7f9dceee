"""The needle in a haystack: one made-up fact is hidden in a long text, and the model is asked for it at the end.

The prompt is put together from tokens, so that it has exactly the length asked for and every token's origin is known:
the same reading of it gives the needle's score and the surprise at the text's own tokens.

Source: the pass key task of Mohtashami and Jaggi 2023, arXiv:2305.16300, in a real text instead of a repeated filler.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .haystack import hide
from .reader import TextSide


@dataclass(frozen=True)
class Wording:
    """How the needle is told and asked for; ``{secret}`` stands for the made-up number.

    `reply` is how a right answer begins, for those who score the secret without having the model write.
    """

    opening: str = ""
    needle: str = "The secret number of the lighthouse is {secret}.\n\n"
    question: str = "What is the secret number of the lighthouse? Answer with the number only."
    reply: str = "The secret number of the lighthouse is"


@dataclass(frozen=True)
class NeedlePrompt:
    """A prompt with a needle in it.

    Attributes:
        tokens: The whole prompt, chat template included.
        text: Positions of the haystack's own tokens: before the needle, and after it.
        needle: Positions of the needle's tokens.
        secret: What the answer must contain.
    """

    tokens: tuple[int, ...]
    text: tuple[range, range]
    needle: range
    secret: str


def made_up_number(*parts: object) -> str:
    """A five-digit number that hangs on the parts alone, so that each prompt has its own and every run the same.

    >>> made_up_number("needle", 1024, 0.5) == made_up_number("needle", 1024, 0.5)
    True
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return str(10_000 + int.from_bytes(digest[:8]) % 90_000)


def hide_needle(
    side: TextSide, haystack: Sequence[Sequence[int]], *, length: int, depth: float, secret: str, wording: Wording
) -> NeedlePrompt:
    """A prompt of exactly `length` tokens, with the needle at `depth` of the text.

    Args:
        side: Turns text into tokens and knows the chat template.
        haystack: The text's paragraphs as tokens, each with the blank line after it; see `encode_paragraphs`.
        length: Tokens of the prompt, chat template, needle and question included.
        depth: Where the needle stands: 0 before the text, 1 after it. It is moved to the nearest end of a paragraph.
        secret: Fills ``{secret}`` in the wording.

    Raises:
        ValueError: a depth outside 0 to 1, a text that is too short, or a length that has no room for any text.
    """
    before, after = side.chat_frame()
    hidden = hide(
        side, haystack, [(depth, wording.needle.format(secret=secret))], length=length,
        head=before + wording.opening, tail="\n\n" + wording.question + after,
    )  # fmt: skip
    (needle,) = hidden.facts
    return NeedlePrompt(hidden.tokens, (hidden.text[0], hidden.text[1]), needle, secret)


def encode_paragraphs(side: TextSide, text: Sequence[str], tokens: int) -> list[list[int]]:
    """The first paragraphs of a text as tokens, until at least `tokens` of them; all if there are fewer."""
    encoded: list[list[int]] = []
    total = 0
    for paragraph in text:
        if total >= tokens:
            break
        encoded.append(side.encode(paragraph + "\n\n"))
        total += len(encoded[-1])
    return encoded


def is_found(secret: str, answer: str) -> bool:
    """Whether an answer names the secret, as a word or number of its own.

    >>> is_found("48213", "The pass key is 48213."), is_found("48213", "It is 482137.")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", answer, re.IGNORECASE) is not None
