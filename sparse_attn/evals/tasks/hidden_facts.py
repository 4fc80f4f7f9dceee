"""A sample that hides facts in the corpus and asks about them: what most tasks share."""

from __future__ import annotations

from collections.abc import Sequence

from ..corpus import Corpus
from ..draws import Draws
from ..haystack import Haystack, hide
from .sample import Request, asked

OPENING = "Facts are hidden in the text below. Read it, and answer the question after it.\n\n"


def hide_facts(
    corpus: Corpus,
    request: Request,
    draws: Draws,
    facts: Sequence[tuple[float, str]],
    question: str,
    *,
    opening: str = OPENING,
) -> Haystack:
    """Facts in the corpus, from a drawn paragraph on, with the question at the end.

    Args:
        facts: Each with its depth in the text.

    Raises:
        ValueError: what `hide` refuses.
    """
    before, after = corpus.side.chat_frame()
    paragraphs = corpus.from_paragraph(draws.below(len(corpus.text)), request.length)
    return hide(
        corpus.side, paragraphs, [(depth, text + "\n\n") for depth, text in facts], length=request.length,
        head=before + opening, tail="\n\n" + asked(question, request) + after,
    )  # fmt: skip


def depth_of(request: Request) -> float:
    """The depth of a task that has one; `Task.sample` has checked it."""
    assert request.depth is not None
    return request.depth
