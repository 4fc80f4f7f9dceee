"""Cross-document questions with citations: the answer needs facts from several documents, and a quote from each.

Documents with identifiers hold a chain of facts, each in a document of its own; a second chain of the same form is what
a careless reader follows. The answer is judged, and so are the identifiers cited and every quote.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..corpus import Corpus
from ..draws import Draws
from ..haystack import spread
from .carried_text import wikipedia_paragraphs
from .hidden_facts import depth_of
from .names import CITIES, PEOPLE, keys, numbers
from .sample import Request, Sample, Score, Task, answer_room, asked
from .token_pieces import Piece, cut_to, newline_token, span_of

NAME = "citations"
DOCUMENTS = (2, 3, 4, 5)
WIDTH = 0.5
SHORT = 600  # characters
OPENING = "Read the documents below, and answer the question after them. Each document begins with its identifier.\n\n"
FORM = (
    " Write one line 'Answer: ...', and then for each document that you used one line '[identifier] \"quote\"', with the "
    "sentence that you used quoted word for word."
)


@dataclass(frozen=True)
class _Chain:
    facts: list[str]
    question: str
    answer: str


def generate(corpus: Corpus, request: Request) -> Sample:
    """A chain of 2 to 5 facts in documents spread over half of the text, around the depth asked for."""
    draws = request.draws(NAME)
    side = corpus.side
    before, after = side.chat_frame()
    count = DOCUMENTS[request.difficulty - 1]
    chain, beside = _chains(draws, count)
    head = side.encode(before + OPENING)
    tail = side.encode("\n\n" + asked(chain.question + FORM, request) + after)
    room = request.length - len(head) - len(tail)

    # Facts stand in short documents, so that a prompt of 2K tokens has room for five of them and as many of the other chain.
    texts = sorted(draws.shuffled(wikipedia_paragraphs()), key=lambda text: len(text) > SHORT)
    names = [f"D{number}" for number in draws.sample(range(100, 1000), 3 * len(texts))]
    bodies = [_insert(draws, texts[index], fact) for index, fact in enumerate([*chain.facts, *beside.facts])]
    filler = texts[len(bodies) :]
    sizes = sum(len(side.encode(_document("D100", body))) for body in bodies)
    for chosen in range(len(filler) + 1):
        if sizes > room + 16:
            break
        if chosen == len(filler):
            raise ValueError(f"length must be at most {request.length - room + sizes:,}, what the carried documents fill, "
                             f"got {request.length:,}")  # fmt: skip
        sizes += len(side.encode(_document("D100", filler[chosen])))
    # Bodies go where the depths say, among the fillers in their order.
    places = [*spread(depth_of(request), count, WIDTH), *(draws.fraction() for _ in beside.facts)]
    slots = [(place * chosen, 0, index) for index, place in enumerate(places)]
    slots += [(number + 0.5, 1, len(bodies) + number) for number in range(chosen)]
    order = [index for _, _, index in sorted(slots)]
    documents = {names[index]: (bodies + filler)[index] for index in order}
    ending = side.encode("\n\n")
    pieces = []
    for index in order:
        header = side.encode(f"[{names[index]}]\n")
        text = side.encode((bodies + filler)[index])
        spare = len(text) if index >= len(bodies) else 0  # no document that holds a fact is cut
        pieces.append(Piece([*header, *text, *ending], spare, turn=-index, ending=len(ending)))
    cut_to(pieces, room, newline_token(side))
    tokens = (*head, *(token for piece in pieces for token in piece.tokens), *tail)
    return Sample(
        NAME, request, tokens, tuple(span_of(pieces, order.index(index), len(head)) for index in range(count)),
        tuple(f"[{names[index]}] {fact}" for index, fact in enumerate(chain.facts)), chain.question, (chain.answer,),
        choices=(chain.answer, beside.answer), answer_tokens=answer_room(24 + 40 * count, request),
        extra={"cited": tuple(names[:count]), "documents": documents},
    )  # fmt: skip


def _document(name: str, text: str) -> str:
    return f"[{name}]\n{text}\n\n"


def _insert(draws: Draws, text: str, fact: str) -> str:
    """A fact between two sentences of a paragraph."""
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
    at = draws.below(len(sentences) + 1)
    return " ".join([*sentences[:at], fact, *sentences[at:]])


def _chains(draws: Draws, count: int) -> tuple[_Chain, _Chain]:
    """Two chains of `count` facts about different things: project, leader, town, archive, guard."""
    projects = [f"Project {name.title().replace(' ', '')}" for name in keys(draws, 2)]
    leaders, guards = draws.sample(PEOPLE, 4)[:2], draws.sample(PEOPLE, 2)
    while set(leaders) & set(guards):
        guards = draws.sample(PEOPLE, 2)
    towns = draws.sample(CITIES, 2)
    archives = numbers(draws, 2, digits=4)
    codes = numbers(draws, 2, digits=6)
    chains = []
    for index in (0, 1):
        steps = [
            (f"{projects[index]} is led by {leaders[index]}.", "Who leads {0}?", leaders[index]),
            (f"{leaders[index]} lives in {towns[index]}.", "In which town does the leader of {0} live?", towns[index]),
            (
                f"The archive of {towns[index]} has the number {archives[index]}.",
                "Which number has the archive of the town where the leader of {0} lives?",
                archives[index],
            ),
            (
                f"Archive {archives[index]} is guarded by {guards[index]}.",
                "Who guards the archive of the town where the leader of {0} lives?",
                guards[index],
            ),
            (
                f"The badge of {guards[index]} bears the code {codes[index]}.",
                "Which code is on the badge of the guard of the archive of the town where the leader of {0} lives?",
                codes[index],
            ),
        ]
        _, question, answer = steps[count - 1]
        chains.append(_Chain([fact for fact, _, _ in steps[:count]], question.format(projects[index]), answer))
    return chains[0], chains[1]


def score(sample: Sample, answer: str) -> Score:
    """1 if the answer is right, all needed documents are cited and no others, and every quote stands in its document.

    Otherwise the mean of three shares: the answer (0 or 1); cited documents that are needed, as F1; quotes that stand
    word for word in the document they name. Citations of documents that do not exist are counted apart.
    """
    said, cited = _answer_line(answer), _citations(answer)
    wanted: tuple[str, ...] = sample.extra["cited"]
    documents: dict[str, str] = sample.extra["documents"]
    right = sample.expected[0].lower() in said.lower()
    names = {name for name, _ in cited}
    hits = len(names & set(wanted))
    f1 = 2 * hits / (len(names) + len(wanted)) if names else 0.0
    verbatim = [name in documents and bool(quote) and _flat(quote) in _flat(documents[name]) for name, quote in cited]
    quoted = sum(verbatim) / len(verbatim) if verbatim else 0.0
    value = (right + f1 + quoted) / 3
    details: dict[str, Any] = {
        "answer_right": right,
        "cited_right": hits,
        "cited_wrong": len(names) - hits,
        "made_up": sum(name not in documents for name in names),
        "quotes": len(cited),
        "quotes_verbatim": sum(verbatim),
    }
    return Score(1.0 if right and f1 == 1 and verbatim and all(verbatim) else min(value, 0.999), details)


def _answer_line(answer: str) -> str:
    found = re.search(r"answer\s*:(.*)", answer, re.IGNORECASE)
    return found.group(1) if found else answer.strip().partition("\n")[0]


def _citations(answer: str) -> list[tuple[str, str]]:
    """Identifiers and quotes, of lines such as ``[D12] "A sentence."``."""
    return re.findall(r"\[(D?\w+)\]\s*:?\s*[\"“”']?([^\n\"“”]*)", answer)


def _flat(text: str) -> str:
    return " ".join(text.split()).strip()


TASK = Task(
    NAME, "an answer from several documents, with a quote from each", "this project; paragraphs of XQuAD, arXiv:1910.11856",
    tuple(f"{count} documents" for count in DOCUMENTS), True, generate, score,
)  # fmt: skip
