"""Multi-key needles: many facts of one form are hidden, and the model is asked for one of them."""

from __future__ import annotations

from ..corpus import Corpus
from .hidden_facts import depth_of, hide_facts
from .names import keys, numbers
from .sample import Request, Sample, Task, answer_room, string_match_all

NAME = "multi_key"
KEYS = (4, 16, 48)


def generate(corpus: Corpus, request: Request) -> Sample:
    """The asked fact at the depth asked for, and the others at drawn depths."""
    draws = request.draws(NAME)
    count = KEYS[request.difficulty - 1]
    names, values = keys(draws, count), numbers(draws, count)
    facts = [f"The special number of the {name} is {value}." for name, value in zip(names, values, strict=True)]
    depths = [depth_of(request), *(draws.fraction() for _ in facts[1:])]
    question = f"What is the special number of the {names[0]}? Answer with the number only."
    hidden = hide_facts(corpus, request, draws, list(zip(depths, facts, strict=True)), question)
    return Sample(
        NAME, request, hidden.tokens, hidden.facts[:1], (facts[0],), question, (values[0],), chance=1 / count,
        choices=tuple(values), answer_tokens=answer_room(32, request),
    )  # fmt: skip


TASK = Task(
    NAME, "one fact among others of its form", "RULER, arXiv:2404.06654",
    tuple(f"{count} keys" for count in KEYS), True, generate, string_match_all,
)  # fmt: skip
