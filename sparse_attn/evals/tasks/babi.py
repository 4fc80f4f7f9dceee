"""bAbI in a book: small facts about people and things are scattered through a novel, and a question needs some of them."""

from __future__ import annotations

import re

from ..corpus import Corpus
from .carried_text import babi_stories
from .hidden_facts import depth_of, hide_facts
from .sample import Request, Sample, Score, Task, answer_room

NAME = "babi"
FILES = ("qa1", "qa2", "qa5", "qa7")
WIDTH = 0.5  # of the book that the facts are scattered over, around the depth
OPENING = (
    "In the book below stand short sentences about where people are, what they carry and what they give to each other; "
    "the rest of the book has nothing to do with them. Read it, and answer the question after it with one word.\n\n"
)


def generate(corpus: Corpus, request: Request) -> Sample:
    """A story's sentences in their order, over half of the book; the middle of those that matter is at the depth."""
    draws = request.draws(NAME)
    stories = babi_stories(FILES[request.difficulty - 1])
    story = draws.choice(stories)
    kind = _kind(story.question)
    labels = tuple(sorted({other.answer for other in stories if _kind(other.question) == kind}))
    depths = _depths(depth_of(request), len(story.sentences), story.support)
    question = f"{story.question} Answer with one word: {', '.join(labels[:-1])} or {labels[-1]}."
    hidden = hide_facts(
        corpus, request, draws, list(zip(depths, story.sentences, strict=True)), question, opening=OPENING
    )
    return Sample(
        NAME, request, hidden.tokens, tuple(hidden.facts[index] for index in story.support),
        tuple(story.sentences[index] for index in story.support), question, (story.answer,), chance=1 / len(labels),
        choices=labels, answer_tokens=answer_room(16, request), extra={"asked": story.question},
    )  # fmt: skip


def _depths(depth: float, count: int, support: tuple[int, ...]) -> list[float]:
    """Even steps over half of the book, shifted so that the supporting facts' mean is `depth`; what passes an end stays there."""
    step = WIDTH / max(1, count - 1)
    middle = sum(support) / len(support)
    return [min(1.0, max(0.0, depth + (number - middle) * step)) for number in range(count)]


def _kind(question: str) -> str:
    """Questions with one set of answers: where, who, what, how many."""
    return question.split()[0].lower()


def score(sample: Sample, answer: str) -> Score:
    """1 if the answer's first sentence names the right word and none of the other possible ones.

    Words that the question itself names do not count as wrong ones.
    Source: BABILong, arXiv:2406.10149.
    """
    first = re.split(r"[.\n]", answer.strip(), maxsplit=1)[0].lower()
    words = set(re.findall(r"\w+", first))
    asked = set(re.findall(r"\w+", sample.extra["asked"].lower()))
    (right,) = sample.expected
    wrong = {label.lower() for label in sample.choices} - {right.lower()} - asked
    return Score(float(right.lower() in words and not words & wrong))


TASK = Task(
    NAME, "facts scattered through a book", "BABILong, arXiv:2406.10149; bAbI, arXiv:1502.05698",
    ("one supporting fact", "two supporting facts", "who gave what to whom", "how many things are carried"), True,
    generate, score,
)  # fmt: skip
