"""Multi-query needles: facts about many things are hidden, and the model is asked for several of them at once."""

from __future__ import annotations

from math import comb

from ..corpus import Corpus
from ..haystack import spread
from .hidden_facts import depth_of, hide_facts
from .names import keys, numbers
from .sample import Request, Sample, Task, answer_room, string_match_all

NAME = "multi_query"
QUERIES = (2, 4, 8)
WIDTH = 0.25


def generate(corpus: Corpus, request: Request) -> Sample:
    """The asked facts over a quarter of the text, around the depth asked for; as many others at drawn depths."""
    draws = request.draws(NAME)
    count = QUERIES[request.difficulty - 1]
    names, values = keys(draws, 2 * count), numbers(draws, 2 * count)
    facts = [f"The special number of the {name} is {value}." for name, value in zip(names, values, strict=True)]
    depths = [*spread(depth_of(request), count, WIDTH), *(draws.fraction() for _ in range(count))]
    wanted = ", ".join(f"the {name}" for name in names[: count - 1]) + f" and the {names[count - 1]}"
    question = f"What are the special numbers of {wanted}? Answer with the numbers only, in this order."
    hidden = hide_facts(corpus, request, draws, list(zip(depths, facts, strict=True)), question)
    return Sample(
        NAME, request, hidden.tokens, hidden.facts[:count], tuple(facts[:count]), question, tuple(values[:count]),
        chance=1 / comb(2 * count, count), choices=tuple(values), answer_tokens=answer_room(24 + 12 * count, request),
    )  # fmt: skip


TASK = Task(
    NAME, "several facts asked for at once", "RULER, arXiv:2404.06654",
    tuple(f"{count} queries among {2 * count} keys" for count in QUERIES), True, generate, string_match_all,
)  # fmt: skip
