"""The text that models read: Book One of War and Peace, carried with the package (see data/SOURCE.md)."""

from __future__ import annotations

import re
from importlib.resources import files

TITLE = "War and Peace, Book One (Leo Tolstoy, translated by Louise and Aylmer Maude)"
_FILE = "war_and_peace_book_one.txt"


def book_text() -> str:
    """The book as it is kept: lines of a fixed width, a blank line between paragraphs."""
    return (files("sparse_attn") / "data" / _FILE).read_text(encoding="utf-8")


def paragraphs(text: str) -> list[str]:
    """A text's paragraphs, each on one line: what a blank line divides.

    >>> paragraphs("One\\nline.\\n\\n\\nAnother.")
    ['One line.', 'Another.']
    """
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def is_heading(paragraph: str) -> bool:
    """Whether a paragraph is the title of a book or a chapter."""
    return paragraph.startswith(("BOOK ", "CHAPTER ")) and paragraph.upper() == paragraph
