"""Multi-document question answering: one of many passages holds the answer, and its position is what is varied."""

from __future__ import annotations

import re
import string

from ..corpus import Corpus
from .carried_text import Passage, carried, passages
from .hidden_facts import depth_of
from .sample import Request, Sample, Score, Task, answer_room, asked
from .token_pieces import Piece, cut_to, newline_token, span_of

NAME = "multi_document_qa"


def generate(corpus: Corpus, request: Request) -> Sample:
    """The gold passage at the depth among passages of other questions, the last chosen of which is cut to fit.

    The distractors are drawn at random (level 1), which is easier than the source's, or are those that share most words
    with the question (level 2). No distractor holds an accepted answer.
    """
    draws = request.draws(NAME)
    side = corpus.side
    before, after = side.chat_frame()
    gold, *rest = draws.shuffled(passages())
    distractors = [passage for passage in rest if not _holds(passage, gold.answers)]
    if request.difficulty == 2:
        distractors.sort(key=lambda passage: -_shared_words(gold.question, passage.text))
    opening, ending = carried("lost_in_the_middle_passages.prompt").split("{search_results}")
    question = ending.format(question=gold.question).strip()
    head, tail = side.encode(before + opening), side.encode("\n\n" + asked(question, request) + after)
    room = request.length - len(head) - len(tail)

    chosen: list[Passage] = []
    sizes = len(side.encode(_document(1, gold)))
    for passage in distractors:
        if sizes > room + 16:  # numbers of two and three digits may save or cost a few
            break
        chosen.append(passage)
        sizes += len(side.encode(_document(len(chosen) + 1, passage)))
    place = round(depth_of(request) * len(chosen))
    ordered = [*chosen[:place], gold, *chosen[place:]]
    pieces = []
    for index, passage in enumerate(ordered):
        text, newline = side.encode(_document(index + 1, passage).rstrip()), side.encode("\n")
        turn = 0 if index == place else -(index if index < place else index - 1)  # the last chosen first
        pieces.append(Piece(text + newline, 0 if index == place else len(text), turn, ending=len(newline)))
    if sizes < room:
        raise ValueError(f"length must be at most {request.length - room + sizes:,}, what the carried passages fill, "
                         f"got {request.length:,}")  # fmt: skip
    cut_to(pieces, room, newline_token(side))
    tokens_of_all = (*head, *(token for piece in pieces for token in piece.tokens), *tail)
    return Sample(
        NAME, request, tokens_of_all, (span_of(pieces, place, len(head)),), (_document(place + 1, gold).strip(),),
        question, gold.answers, choices=tuple(passage.answers[0] for passage in chosen),
        answer_tokens=answer_room(48, request),
    )  # fmt: skip


def _document(number: int, passage: Passage) -> str:
    return f"Document [{number}](Title: {passage.title}) {passage.text}\n"


def _holds(passage: Passage, answers: tuple[str, ...]) -> bool:
    text = normalized(f"{passage.title} {passage.text}")
    return any(normalized(answer) in text for answer in answers)


def _shared_words(question: str, text: str) -> int:
    asked_words = {word for word in normalized(question).split() if len(word) > 3}
    return len(asked_words & set(normalized(text).split()))


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces.

    Source: SQuAD's evaluation, as Lost in the Middle uses it, arXiv:2307.03172.

    >>> normalized("The  Eiffel-Tower!")
    'eiffeltower'
    """
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def score(sample: Sample, answer: str) -> Score:
    """Best subspan match: 1 if any accepted answer stands in the answer, both normalised.

    Source: Lost in the Middle, arXiv:2307.03172.
    """
    said = normalized(answer)
    return Score(float(any(normalized(wanted) in said for wanted in sample.expected)))


TASK = Task(
    NAME, "a question that one of many passages answers", "Lost in the Middle, arXiv:2307.03172",
    ("passages drawn at random", "passages that share words with the question"), True, generate, score,
)  # fmt: skip
