"""Common words: a numbered list of words, of which a few stand far more often than the rest."""

from __future__ import annotations

from ..corpus import Corpus
from .counted_words import fill_list, scattered, vocabulary
from .sample import Request, Sample, Task, answer_room, string_match_all

NAME = "common_words"
COMMON = (3, 5, 10)
TIMES = 10  # a common word stands ten times as often as an uncommon one, as in the source (30 and 3)
OPENING = "Below is a numbered list of words. Some words stand in it much more often than the others.\n\n"


def generate(corpus: Corpus, request: Request) -> Sample:
    """The list fills the prompt. A common word stands ten times for each time that an uncommon one does."""
    draws = request.draws(NAME)
    words = draws.shuffled(vocabulary())
    count = COMMON[request.difficulty - 1]
    common, uncommon = words[:count], words[count:]
    order = draws.below(2**31)

    def items(total: int) -> list[str]:
        # Each round is a common word's ten and some uncommon ones; where the words run out, all frequencies double.
        rounds = 1
        while total - TIMES * count * rounds > len(uncommon) * rounds:
            rounds += 1
        others = max(0, total - TIMES * count * rounds)
        listed = common * (TIMES * rounds) + [uncommon[index // rounds] for index in range(others)]
        return [f"{number}. {listed[place]}\n" for number, place in enumerate(scattered(len(listed), order), 1)]

    question = f"Which {count} words stand most often in the list above? Answer with the words only."
    tokens = fill_list(corpus, request, opening=OPENING, question=question, items=items, least=TIMES * count + count)
    return Sample(
        NAME, request, tokens, (), (), question, tuple(common), choices=tuple(words[: 2 * count]),
        answer_tokens=answer_room(8 * count, request),
    )  # fmt: skip


TASK = Task(
    NAME, "the most common words of a list", "RULER's common words extraction, arXiv:2404.06654",
    tuple(f"{count} common words" for count in COMMON), False, generate, string_match_all,
)  # fmt: skip
