"""The single needle: one fact is hidden in a long text, and the model is asked for it."""

from __future__ import annotations

from ..corpus import Corpus
from .hidden_facts import depth_of, hide_facts
from .names import CITIES
from .sample import Request, Sample, Task, answer_room, string_match_all

NAME = "needle"


def generate(corpus: Corpus, request: Request) -> Sample:
    """A city's number (level 1) or its UUID (level 2), at the depth asked for."""
    draws = request.draws(NAME)
    city = draws.choice(CITIES)
    secret = draws.digits(7) if request.difficulty == 1 else draws.uuid()
    thing = "number" if request.difficulty == 1 else "identifier"
    fact = f"The special {thing} of {city} is {secret}."
    question = f"What is the special {thing} of {city}? Answer with the {thing} only."
    hidden = hide_facts(corpus, request, draws, [(depth_of(request), fact)], question)
    return Sample(
        NAME, request, hidden.tokens, hidden.facts, (fact,), question, (secret,),
        answer_tokens=answer_room(32 if request.difficulty == 1 else 64, request),
    )  # fmt: skip


TASK = Task(
    NAME, "one fact hidden in a text", "RULER, arXiv:2404.06654; Mohtashami and Jaggi, arXiv:2305.16300",
    ("a seven-digit number", "a UUID"), True, generate, string_match_all,
)  # fmt: skip
