"""Perplexity by position: the surprise at a real text's tokens, against how much text stands before them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ..corpus import Corpus
from ..draws import Draws

NAME = "perplexity"
FIRST = 64  # tokens of the first bin; each later one ends half an octave on


@dataclass(frozen=True)
class TextPiece:
    """A stretch of the text and the bins of positions whose surprise is summed."""

    length: int
    number: int
    tokens: tuple[int, ...]
    bins: tuple[range, ...]


def text_piece(corpus: Corpus, length: int, number: int, *, seed: int = 0) -> TextPiece:
    """The text from a drawn paragraph on, exactly `length` tokens, without a question or a chat template.

    What the tokenizer puts before any text (a mark of its beginning, if it has one) is among them.

    Raises:
        ValueError: the text is shorter, or the length is below two bins.
    """
    if length < 2 * FIRST:
        raise ValueError(f"length of {NAME} must be at least {2 * FIRST}, got {length}")
    start = Draws(NAME, seed, length, number).below(len(corpus.text))
    passage = corpus.from_paragraph(start, length)
    tokens = [*corpus.side.beginning(), *(token for paragraph in passage for token in paragraph)]
    if len(tokens) < length:
        raise ValueError(f"the text has {len(tokens):,} tokens, but a piece of {length:,} is asked for")
    return TextPiece(length, number, tuple(tokens[:length]), position_bins(length))


def position_bins(length: int) -> tuple[range, ...]:
    """Stretches of positions, each half an octave longer than the one before; the first token has no surprise.

    >>> position_bins(256)
    (range(1, 64), range(64, 91), range(91, 128), range(128, 181), range(181, 256))
    """
    edges = [1]
    step = 0
    while (edge := round(FIRST * 2 ** (step / 2))) < length:
        edges.append(edge)
        step += 1
    edges.append(length)
    return tuple(range(low, high) for low, high in itertools.pairwise(edges))
