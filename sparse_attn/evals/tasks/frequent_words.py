"""Frequent words: a text of made-up words whose counts fall with a power of their rank; the three at the top are asked."""

from __future__ import annotations

from ..corpus import Corpus
from ..draws import Draws
from .counted_words import fill_list, scattered
from .sample import Request, Sample, Task, answer_room, string_match_all

NAME = "frequent_words"
ALPHA = (3.0, 2.5, 2.0)  # the source's is 2; a larger one makes the first words stand out more
TOP = 3
RANKS = 50
NOISE = "... "  # takes the first rank, and is not asked for
OPENING = "Below is a coded text. Find out which coded words stand in it most often; the dots are no word.\n\n"
_LETTERS = "bcdfghjklmnpqrstvwxz"  # no vowels: no coded word is one of a language


def generate(corpus: Corpus, request: Request) -> Sample:
    """Counts are proportional to rank^-alpha, not drawn, so that the three are always told apart."""
    draws = request.draws(NAME)
    words = _coded_words(draws, RANKS)
    alpha = ALPHA[request.difficulty - 1]
    weights = [rank**-alpha for rank in range(1, RANKS + 2)]
    order = draws.below(2**31)

    def items(total: int) -> list[str]:
        counts = [round(total * weight / sum(weights)) for weight in weights]
        listed = [NOISE] * counts[0]
        for rank, word in enumerate(words, 1):
            least = 3 if rank <= TOP else 1 if rank == TOP + 1 else 0
            listed += [f"{word} "] * max(counts[rank], least)
        return [listed[place] for place in scattered(len(listed), order)]

    question = f"Which {TOP} coded words stand most often in the text above? Answer with the words only."
    tokens = fill_list(corpus, request, opening=OPENING, question=question, items=items, least=30)
    return Sample(
        NAME, request, tokens, (), (), question, tuple(words[:TOP]), chance=0.0, choices=tuple(words),
        answer_tokens=answer_room(12 * TOP, request),
    )  # fmt: skip


def _coded_words(draws: Draws, count: int) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        word = "".join(draws.choice(_LETTERS) for _ in range(6))
        if word not in words:
            words.append(word)
    return words


TASK = Task(
    NAME, "the most frequent words of a coded text", "RULER's frequent words extraction, arXiv:2404.06654",
    tuple(f"counts fall with rank^-{alpha:g}" for alpha in ALPHA), False, generate, string_match_all,
)  # fmt: skip
