"""Rows of patterns against each other: the same prompts, read dense and sparse, with cost, time and quality measured.

One reading of a prompt serves for the prefill time, the needle and (at the first depth) the surprise at the text.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .needle import NeedlePrompt, Wording, encode_paragraphs, hide_needle, is_found, made_up_number
from .reader import Patterns, Reader, Reading

ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Row:
    """One way to attend.

    Attributes:
        name: A few words for tables.
        pattern: The pattern of the layers, as text; None: full attention.
        full_layers: Layers that keep full attention all the same.
        from_length: Shorter prompts are not read through this row.
    """

    name: str
    pattern: str | None
    full_layers: tuple[int, ...] = ()
    from_length: int = 0

    def patterns(self, layers: int) -> Patterns:
        """Each layer's pattern.

        Raises:
            ValueError: a layer that keeps full attention is not one of the model's.
        """
        outside = [layer for layer in self.full_layers if not 0 <= layer < layers]
        if outside:
            raise ValueError(f"row {self.name!r} keeps full attention in layers {outside}, but the model's are 0 to "
                             f"{layers - 1}")  # fmt: skip
        return [None if layer in self.full_layers else self.pattern for layer in range(layers)]


@dataclass(frozen=True)
class Needle:
    """One needle's fate."""

    depth: float
    secret: str
    answer: str
    found: bool


@dataclass(frozen=True)
class Cell:
    """A row at one length: what it cost and what it kept of the model's ability.

    Attributes:
        prefill_seconds: Median over the readings.
        kept_pairs, dense_pairs: Query-key pairs of the prefill in all layers, of one head; of patterns that choose by
            content, what was spent on average over readings and heads.
        cache_bytes, dense_cache_bytes: What a KV cache must hold for the patterns, and what dense attention's holds.
        perplexity: exp of the mean surprise at the text's own tokens; needle, question and template are not in it.
        text_tokens: How many tokens that is the mean over.
    """

    row: str
    length: int
    prefill_seconds: float
    kept_pairs: int
    dense_pairs: int
    cache_bytes: int
    dense_cache_bytes: int
    perplexity: float
    text_tokens: int
    needles: tuple[Needle, ...]


def needle_prompts(
    reader: Reader, text: Sequence[str], lengths: Sequence[int], depths: Sequence[float]
) -> dict[int, list[NeedlePrompt]]:
    """The prompts of a comparison, by length; each has a secret of its own.

    Raises:
        ValueError: what `hide_needle` refuses, or a length that with its answer exceeds the model's context.
    """
    for length in lengths:
        if length + ANSWER_TOKENS > reader.context:
            raise ValueError(f"length {length:,} and an answer of {ANSWER_TOKENS} tokens exceed the model's context of "
                             f"{reader.context:,} tokens")  # fmt: skip
    haystack = encode_paragraphs(reader, text, max(lengths))
    return {
        length: [
            hide_needle(reader, haystack, length=length, depth=depth, secret=made_up_number("needle", length, depth),
                        wording=Wording())
            for depth in depths
        ]
        for length in lengths
    }  # fmt: skip


def compare(
    reader: Reader,
    rows: Sequence[Row],
    prompts: dict[int, list[NeedlePrompt]],
    depths: Sequence[float],
    on_reading: Callable[[Row, int], None] = lambda row, length: None,
) -> Iterator[Cell]:
    """Read every prompt through every row, shortest prompts first, and give each finished cell.

    Args:
        on_reading: Called before each reading, for a progress bar.

    The reader attends as the model came when this ends, however it ends.
    """
    try:
        for length, group in prompts.items():
            for row in (row for row in rows if length >= row.from_length):
                reader.attend(row.patterns(reader.layers))
                yield _cell(reader, row, length, list(zip(depths, group, strict=True)), on_reading)
    finally:
        reader.attend([None] * reader.layers)


def _cell(
    reader: Reader,
    row: Row,
    length: int,
    group: list[tuple[float, NeedlePrompt]],
    on_reading: Callable[[Row, int], None],
) -> Cell:
    readings: list[Reading] = []
    needles: list[Needle] = []
    spent: list[int] = []
    for depth, prompt in group:
        on_reading(row, length)
        # The text is the same at every depth: its surprise is taken once.
        scored = () if readings else prompt.text
        reading = reader.read(prompt.tokens, scored=scored, answer_tokens=ANSWER_TOKENS)
        readings.append(reading)
        if reader.last_pairs is not None:
            spent.append(reader.last_pairs)
        needles.append(Needle(depth, prompt.secret, reading.answer, is_found(prompt.secret, reading.answer)))
    cost = reader.cost(row.patterns(reader.layers), length)
    return Cell(
        row=row.name,
        length=length,
        prefill_seconds=statistics.median(reading.prefill_seconds for reading in readings),
        kept_pairs=round(statistics.mean(spent)) if spent else cost.kept_pairs,
        dense_pairs=cost.dense_pairs,
        cache_bytes=cost.cache_bytes,
        dense_cache_bytes=cost.dense_cache_bytes,
        perplexity=math.exp(readings[0].surprise / readings[0].scored_tokens),
        text_tokens=readings[0].scored_tokens,
        needles=tuple(needles),
    )
