"""Key-value retrieval: a JSON object of random keys and values, and the value of one key is asked for."""

from __future__ import annotations

from ..corpus import Corpus
from ..draws import Draws
from .carried_text import carried, key_value_pairs
from .hidden_facts import depth_of
from .sample import Request, Sample, Task, answer_room, asked, string_match_all
from .token_pieces import Piece, cut_to, newline_token, span_of

NAME = "kv_retrieval"


def generate(corpus: Corpus, request: Request) -> Sample:
    """As many records as fit; the asked one at the depth. What is left over is a first record whose value is text.

    The first 600 records are the source's own, in a drawn order; longer prompts take made-up ones of the same form. At
    level 2 all keys begin alike, so that a key is not told by its first characters.
    """
    draws = request.draws(NAME)
    side = corpus.side
    before, after = side.chat_frame()
    opening, ending = carried("lost_in_the_middle_keys.prompt").rstrip("\n").split("{formatted_kv_records}")
    pairs = _pairs(draws, request)
    asked_for = pairs.pop(0)
    question = ending.format(key=asked_for[0]).strip("\n")
    head = side.encode(f"{before}{opening}{{")
    tail = side.encode(f'"end": "end"}}\n\n{asked(question, request)}{after}')
    room = request.length - len(head) - len(tail)

    gold = Piece(side.encode(_record(*asked_for)))
    others: list[Piece] = []
    values: list[str] = []
    filled = len(gold.tokens) + len(side.encode(_record("note", "")))
    for key, value in pairs:
        piece = Piece(side.encode(_record(key, value)))
        if filled + len(piece.tokens) > room:
            break
        others.append(piece)
        values.append(value)
        filled += len(piece.tokens)
    else:
        raise ValueError(f"the carried and made-up records end before a length of {request.length:,}")
    opening_tokens = side.encode('"note": "')
    closing = side.encode('",\n ')
    spare = room - len(gold.tokens) - sum(len(piece.tokens) for piece in others) - len(opening_tokens) - len(closing)
    if spare < 0:
        raise ValueError(
            f"length must be at least {request.length - spare:,} for key-value retrieval, got {request.length:,}"
        )
    text = [token for paragraph in corpus.from_paragraph(0, spare) for token in paragraph][:spare]
    place = round(depth_of(request) * len(others))
    pieces = [Piece([*opening_tokens, *text, *closing]), *others[:place], gold, *others[place:]]
    cut_to(pieces, room, newline_token(side))
    tokens = (*head, *(token for piece in pieces for token in piece.tokens), *tail)
    return Sample(
        NAME, request, tokens, (span_of(pieces, place + 1, len(head)),), (_record(*asked_for).strip(),), question,
        (asked_for[1],), chance=1 / (len(others) + 1), choices=(asked_for[1], *values),
        answer_tokens=answer_room(48, request),
    )  # fmt: skip


def _record(key: str, value: str) -> str:
    return f'"{key}": "{value}",\n '


def _pairs(draws: Draws, request: Request) -> list[tuple[str, str]]:
    wanted = max(64, request.length // 8)  # a record takes at least a token for each of its groups: more never fit
    pairs = draws.shuffled(key_value_pairs())[:wanted]
    pairs += [(draws.uuid(), draws.uuid()) for _ in range(wanted - len(pairs))]
    if request.difficulty == 2:
        start = pairs[0][0][:8]
        pairs = [(start + key[8:], value) for key, value in pairs]
    return pairs


TASK = Task(
    NAME, "the value of one key of a JSON object", "Lost in the Middle, arXiv:2307.03172",
    ("keys that differ from their first character on", "keys that begin alike"), True, generate, string_match_all,
)  # fmt: skip
