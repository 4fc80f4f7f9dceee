"""What an evaluation needs of a model, whatever runs it: its text side, its attention, and one reading at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Patterns = Sequence[str | None]  # each layer's pattern as text; None: full attention, as the model came


class Reading(Protocol):
    """What came of reading one prompt and answering it."""

    @property
    def answer(self) -> str:
        """What the model wrote."""

    @property
    def prefill_seconds(self) -> float:
        """From the prompt's tokens to the first answer token's logits; scoring is not in it."""

    @property
    def surprise(self) -> float:
        """Sum over the scored tokens of -ln p(token | what stands before it)."""

    @property
    def surprise_by_part(self) -> Sequence[float]:
        """The same, of each scored range by itself."""

    @property
    def scored_tokens(self) -> int:
        """How many tokens that sums over."""


class Cost(Protocol):
    """What reading some tokens costs, in all layers together."""

    @property
    def kept_pairs(self) -> int:
        """Query-key pairs of the prefill that the patterns keep, of one head."""

    @property
    def dense_pairs(self) -> int:
        """Those of dense attention."""

    @property
    def cache_bytes(self) -> int:
        """Keys and values that a later token may still see: what a cache that evicts the rest would hold."""

    @property
    def dense_cache_bytes(self) -> int:
        """Keys and values that are held now, which is as dense attention needs them."""


class TextSide(Protocol):
    """Text to tokens, as the model was trained to be asked."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with nothing added before or after."""

    def beginning(self) -> list[int]:
        """The tokens that stand before any text that is not framed, such as one that marks its beginning; often none."""

    def chat_frame(self) -> tuple[str, str]:
        """What stands before and after a user's message, the beginning of the answer included."""


class Reader(TextSide, Protocol):
    """A model that reads prompts through one pattern a layer."""

    @property
    def layers(self) -> int:
        """How many layers attend."""

    @property
    def context(self) -> int:
        """The most tokens that the model was made for, prompt and answer together."""

    def attend(self, patterns: Patterns) -> None:
        """Attend through these patterns from now on; None everywhere is the model as it came.

        Raises:
            ValueError, NotImplementedError: the model cannot attend through one of them.
        """

    def read(self, tokens: Sequence[int], *, scored: Sequence[range] = (), answer_tokens: int = 16) -> Reading:
        """Read a prompt, score the tokens at the positions in `scored`, and answer greedily."""

    def read_many(self, prompts: Sequence[Sequence[int]], *, answer_tokens: int = 16) -> list[str]:
        """Read prompts of one length at once, and answer each greedily."""

    def cost(self, patterns: Patterns, tokens: int) -> Cost:
        """What reading that many tokens through these patterns costs; by arithmetic, nothing is run.

        Of patterns that choose by content it is the most that they can cost.
        """

    @property
    def last_pairs(self) -> int | None:
        """Query-key pairs that the last reading's prefill computed, as `Cost.kept_pairs` counts them.

        On average over its prompts and heads; None where no pattern chose by content, so that `cost` knows.
        """
