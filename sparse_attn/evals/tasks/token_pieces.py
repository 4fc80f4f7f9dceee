"""Prompts put together from pieces of tokens, cut to an exact length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..reader import TextSide


@dataclass
class Piece:
    """A part of a prompt.

    Attributes:
        tokens: Its tokens.
        spare: How many of them may be cut; pieces are cut in the order of their `turn`.
        turn: Lower is cut first.
        ending: How many at its end stay even so: what parts it from the next piece.
    """

    tokens: list[int]
    spare: int = 0
    turn: int = 0
    ending: int = 0


def cut_to(pieces: Sequence[Piece], room: int, newline: int) -> None:
    """Make the pieces take exactly `room` tokens: cut what is spare, or add newlines at the end.

    Raises:
        ValueError: they are too long and not enough is spare.
    """
    surplus = sum(len(piece.tokens) for piece in pieces) - room
    if surplus < 0:
        pieces[-1].tokens.extend([newline] * -surplus)
        return
    for piece in sorted(pieces, key=lambda piece: piece.turn):
        taken = min(surplus, piece.spare)
        if taken:
            end = len(piece.tokens) - piece.ending
            del piece.tokens[end - taken : end]
            surplus -= taken
    if surplus:
        raise ValueError(
            f"length must be larger: what the task needs takes {surplus:,} tokens more than there is room for"
        )


def newline_token(side: TextSide) -> int:
    """One token that is nothing but a line's end, or the last of those that make one."""
    return side.encode("\n")[-1]


def span_of(pieces: Sequence[Piece], index: int, before: int) -> range:
    """Positions of one piece's tokens, where `before` tokens stand before the first piece."""
    start = before + sum(len(piece.tokens) for piece in pieces[:index])
    return range(start, start + len(pieces[index].tokens))
