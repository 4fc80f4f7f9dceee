"""What a task is: a seeded generator of prompts, and a scorer of answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..corpus import Corpus
from ..draws import Draws

PROMPTS = ("plain", "verify")

VERIFY = (
    " Before you answer, read the text above again, quote word for word the sentence that holds the answer, and check "
    "that the quote answers the question. Then write the answer on a line of its own that begins with 'Answer:'."
)
VERIFY_TOKENS = 96  # more to write for a quote and its check


@dataclass(frozen=True)
class Request:
    """One sample that is wanted.

    Attributes:
        length: Tokens of the prompt, chat template included.
        depth: Where the facts stand: 0 at the text's beginning, 1 at its end; None: the task has no such place.
        difficulty: From 1 on; what it changes, the task says.
        number: Which of the samples of this kind.
        seed: Of the whole evaluation.
        prompt: ``plain``, or ``verify``: the model is told to quote and check the source before it answers.
        fixed: The content does not hang on the depth, so that places can be compared on the same facts and text.
    """

    length: int
    depth: float | None = 0.5
    difficulty: int = 1
    number: int = 0
    seed: int = 0
    prompt: str = "plain"
    fixed: bool = False

    def draws(self, task: str) -> Draws:
        """The sample's random choices. The prompt's wording does not change them."""
        depth = None if self.fixed else self.depth
        return Draws(task, self.seed, self.length, depth, self.difficulty, self.number)


@dataclass(frozen=True)
class Sample:
    """One prompt, and what makes an answer right.

    Attributes:
        task: Its name.
        request: What was asked for.
        tokens: The prompt.
        facts: Positions of the tokens that the answer hangs on.
        told: These facts as text.
        question: What is asked.
        expected: What a right answer names.
        chance: How often a guess is right that picks among `choices` as many as `expected` has.
        choices: What a guesser who knows the form of the answer may pick from.
        answer_tokens: The most that the model may write.
        extra: What the scorer needs besides.
    """

    task: str
    request: Request
    tokens: tuple[int, ...]
    facts: tuple[range, ...]
    told: tuple[str, ...]
    question: str
    expected: tuple[str, ...]
    chance: float = 0.0
    choices: tuple[str, ...] = ()
    answer_tokens: int = 32
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """How good an answer is.

    Attributes:
        value: From 0 to 1, as the task's source counts.
        details: Whatever else was counted.
    """

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def correct(self) -> bool:
        """All that was asked for; what paired tests count."""
        return self.value >= 1.0


@dataclass(frozen=True)
class Task:
    """A task of the evaluation.

    Attributes:
        name: As the command line says it.
        summary: What it asks, for people.
        source: The paper or benchmark that defines it.
        difficulties: What each level changes, from level 1 on.
        has_depth: Whether its facts stand at one place of the text.
        generate: Builds a sample. Raises `ValueError` where the length has no room, or the text is too short.
        score: Judges what a model wrote.
    """

    name: str
    summary: str
    source: str
    difficulties: tuple[str, ...]
    has_depth: bool
    generate: Callable[[Corpus, Request], Sample]
    score: Callable[[Sample, str], Score]

    def sample(self, corpus: Corpus, request: Request) -> Sample:
        """A sample, once the request has been checked.

        Raises:
            ValueError: no such difficulty or prompt, a depth outside 0 to 1, or what `generate` refuses.
        """
        if not 1 <= request.difficulty <= len(self.difficulties):
            raise ValueError(f"difficulty of {self.name} must be from 1 to {len(self.difficulties)} "
                             f"({', '.join(self.difficulties)}), got {request.difficulty}")  # fmt: skip
        if request.prompt not in PROMPTS:
            raise ValueError(f"prompt must be one of {', '.join(PROMPTS)}, got {request.prompt!r}")
        if self.has_depth and (request.depth is None or not 0 <= request.depth <= 1):
            raise ValueError(f"depth of {self.name} must be from 0 to 1, got {request.depth}")
        return self.generate(corpus, request)

    def judge(self, sample: Sample, answer: str) -> Score:
        """An answer's score; of a prompt that asks for a quote first, what stands after the last 'Answer:' counts."""
        return self.score(sample, final_answer(answer) if sample.request.prompt == "verify" else answer)


def asked(question: str, request: Request) -> str:
    """The question as the request's prompt puts it."""
    return question + (VERIFY if request.prompt == "verify" else "")


def answer_room(tokens: int, request: Request) -> int:
    """The most tokens of an answer, with room for a quote where one is asked for."""
    return tokens + (VERIFY_TOKENS if request.prompt == "verify" else 0)


def final_answer(answer: str) -> str:
    """What stands after the last 'Answer:', or all of it if that is not there.

    >>> final_answer("The text says 12. Answer: 12"), final_answer("12")
    ('12', '12')
    """
    return re.split(r"answer\s*:", answer, flags=re.IGNORECASE)[-1].strip()


def string_match_all(sample: Sample, answer: str) -> Score:
    """The share of what is expected that stands in the answer, whatever else does; letter case is ignored.

    Also counted: how many of the other choices the answer names.

    Source: RULER's `string_match_all`, arXiv:2404.06654.
    """
    said = answer.lower()
    named = [part for part in sample.expected if part.lower() in said]
    others = [part for part in sample.choices if part not in sample.expected and part.lower() in said]
    return Score(len(named) / len(sample.expected), {"also_named": len(others)})
