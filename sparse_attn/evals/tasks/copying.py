"""Copying: a marked row of words stands in the text and is to be written again."""

from __future__ import annotations

from ..corpus import Corpus
from ..draws import Draws
from .hidden_facts import depth_of, hide_facts
from .names import keys
from .sample import Request, Sample, Score, Task, answer_room

NAME = "copying"
PAIRS = (3, 6, 12)


def generate(corpus: Corpus, request: Request) -> Sample:
    """Pairs of words that make no sense, so that nothing but the text tells the next one."""
    draws = request.draws(NAME)
    words = _words(draws, PAIRS[request.difficulty - 1])
    fact = f"List to copy: {' '.join(words)}."
    question = "Write the words of the list to copy again, in the same order. Answer with the words only."
    hidden = hide_facts(corpus, request, draws, [(depth_of(request), fact)], question)
    return Sample(
        NAME, request, hidden.tokens, hidden.facts, (fact,), question, (" ".join(words),),
        answer_tokens=answer_room(8 * len(words), request),
    )  # fmt: skip


def _words(draws: Draws, pairs: int) -> list[str]:
    return [word for pair in keys(draws, pairs) for word in pair.split()]


def score(sample: Sample, answer: str) -> Score:
    """The share of the words that were copied before the first wrong one.

    The copy may begin anywhere in the answer; letter case, line breaks and punctuation are ignored.
    """
    wanted = sample.expected[0].split()
    said = [word.strip(".,;:!?\"'`*()[]-").lower() for word in answer.split()]
    best = 0
    for start in range(len(said)):
        run = 0
        while run < len(wanted) and start + run < len(said) and said[start + run] == wanted[run]:
            run += 1
        best = max(best, run)
    return Score(best / len(wanted), {"words": best})


TASK = Task(
    NAME, "a row of words written again", "Jelassi et al. 2024, arXiv:2402.01032, within a long text",
    tuple(f"{2 * pairs} words" for pairs in PAIRS), True, generate, score,
)  # fmt: skip
