"""Multi-value needles: several facts about one thing are hidden, and the model is asked for all of them."""

from __future__ import annotations

from ..corpus import Corpus
from ..haystack import spread
from .hidden_facts import depth_of, hide_facts
from .names import keys, numbers
from .sample import Request, Sample, Task, answer_room, string_match_all

NAME = "multi_value"
VALUES = (2, 4, 8)
WIDTH = 0.25  # of the text that the facts are spread over, around the depth


def generate(corpus: Corpus, request: Request) -> Sample:
    """The facts stand over a quarter of the text, around the depth asked for."""
    draws = request.draws(NAME)
    count = VALUES[request.difficulty - 1]
    (name,) = keys(draws, 1)
    values = numbers(draws, count)
    facts = [f"One of the special numbers of the {name} is {value}." for value in values]
    question = f"What are all {count} special numbers of the {name}? Answer with the numbers only."
    depths = spread(depth_of(request), count, WIDTH)
    hidden = hide_facts(corpus, request, draws, list(zip(depths, facts, strict=True)), question)
    return Sample(
        NAME, request, hidden.tokens, hidden.facts, tuple(facts), question, tuple(values),
        answer_tokens=answer_room(24 + 12 * count, request),
    )  # fmt: skip


TASK = Task(
    NAME, "all facts about one thing", "RULER, arXiv:2404.06654",
    tuple(f"{count} values" for count in VALUES), True, generate, string_match_all,
)  # fmt: skip
