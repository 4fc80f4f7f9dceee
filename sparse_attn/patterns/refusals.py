"""What attention refuses of a pattern whatever the tensors: terms that cannot stand together, and terms that need causality.

One sentence each, for `attention` and for everything that speaks of a pattern before there are tensors.
"""

from __future__ import annotations

from .chosen import split_choice
from .covering import Covering
from .hashed import Hashed, split_hashed
from .pattern import Pattern, Within
from .terms import AnchorTree, Summaries, Term


def check_union(pattern: Pattern) -> None:
    """Refuse terms that no attention can serve together.

    Raises:
        ValueError: two terms of summary keys, or two that choose by content.

    >>> check_union(Window(8) | Anchors(4) | TopBlocks(2))
    """
    summaries = [term for term in pattern.terms if isinstance(term, Summaries)]
    if len(summaries) > 1:
        raise ValueError(f"pattern: at most one term of summary keys, got {summaries[0]!r} and {summaries[1]!r}")
    split_hashed(pattern)
    split_choice(pattern)


def check_direction(pattern: Pattern, causal: bool) -> None:
    """Refuse terms that are causal by definition where attention is not.

    Raises:
        NotImplementedError: says what to use instead.
    """
    for clause in () if causal else pattern.terms:
        if (sentence := _needs_causal(clause.term if isinstance(clause, Within) else clause)) is not None:
            raise NotImplementedError(sentence)


def _needs_causal(term: Term) -> str | None:
    match term:
        case Hashed():
            return "attention: Hashed ranks keys among earlier ones and is causal; use TopBlocks for causal=False"
        case Covering():
            return "CoverBlocks and VerticalSlash are causal: use TopBlocks where causal=False"
        case AnchorTree():
            return "AnchorTree is causal: a bidirectional layer takes Anchors"
        case _:
            return None
