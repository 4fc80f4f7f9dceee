"""The text that facts are hidden in, as one model's tokens: encoded once, read from any paragraph on."""

from __future__ import annotations

from collections.abc import Sequence

from .book import book_text, is_heading, paragraphs
from .reader import TextSide


class Corpus:
    """Paragraphs of a text and the tokenizer that reads them.

    Args:
        side: Turns text into tokens and knows the chat template.
        text: Paragraphs; None: Book One of War and Peace, without its headings.
    """

    def __init__(self, side: TextSide, text: Sequence[str] | None = None) -> None:
        self.side = side
        self.own = text  # None: the book
        self.text = [part for part in paragraphs(book_text()) if not is_heading(part)] if text is None else list(text)
        if not self.text:
            raise ValueError("text must have at least one paragraph, got none")
        self._encoded: dict[int, list[int]] = {}

    def paragraph(self, index: int) -> list[int]:
        """One paragraph's tokens, with the blank line after it."""
        if index not in self._encoded:
            self._encoded[index] = self.side.encode(self.text[index] + "\n\n")
        return self._encoded[index]

    def from_paragraph(self, start: int, tokens: int) -> list[list[int]]:
        """Paragraphs from `start` on, and from the text's beginning after its end, until at least `tokens` tokens.

        Fewer if the whole text has fewer; each paragraph comes once at most.
        """
        passage: list[list[int]] = []
        total = 0
        for step in range(len(self.text)):
            if total >= tokens:
                break
            passage.append(self.paragraph((start + step) % len(self.text)))
            total += len(passage[-1])
        return passage
