"""Variable tracking: a value is handed from variable to variable through the text, and all that hold it are asked for."""

from __future__ import annotations

from math import comb

from ..corpus import Corpus
from ..draws import Draws
from ..haystack import spread
from .hidden_facts import depth_of, hide_facts
from .names import numbers
from .sample import Request, Sample, Task, answer_room, string_match_all

NAME = "hops"
HOPS = (1, 2, 3, 4)
WIDTH = 0.25
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels: no variable is a word


def generate(corpus: Corpus, request: Request) -> Sample:
    """Two chains of `difficulty` hops each, over a quarter of the text around the depth; one chain's value is asked for.

    The source's own setting has one chain; the second one here is what a guess can get wrong.
    """
    draws = request.draws(NAME)
    hops = HOPS[request.difficulty - 1]
    names = _variables(draws, 2 * (hops + 1))
    asked_for, other = names[: hops + 1], names[hops + 1 :]
    value, other_value = numbers(draws, 2, digits=5)
    chain, beside = _chain(asked_for, value), _chain(other, other_value)
    depths = spread(depth_of(request), hops + 1, WIDTH)
    facts = list(zip(depths, chain, strict=True)) + list(zip(depths, beside, strict=True))
    question = (
        f"Which variables hold the value {value}? Follow the assignments through the text, and answer with the names of all "
        f"{hops + 1} variables only."
    )
    hidden = hide_facts(corpus, request, draws, facts, question)
    return Sample(
        NAME, request, hidden.tokens, hidden.facts[: hops + 1], tuple(chain), question, tuple(asked_for),
        chance=1 / comb(len(names), hops + 1), choices=tuple(names),
        answer_tokens=answer_room(12 * (hops + 1), request),
    )  # fmt: skip


def _chain(names: list[str], value: str) -> list[str]:
    first, *rest = names
    hops = [f"VAR {name} = VAR {before}." for before, name in zip(names, rest, strict=False)]
    return [f"VAR {first} = {value}.", *hops]


def _variables(draws: Draws, count: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = "".join(draws.choice(_LETTERS) for _ in range(5))
        if name not in names:
            names.append(name)
    return names


TASK = Task(
    NAME, "a value followed through assignments", "RULER's variable tracking, arXiv:2404.06654",
    tuple(f"{hops} hop{'s' if hops > 1 else ''}" for hops in HOPS), True, generate, string_match_all,
)  # fmt: skip
