"""Facts a -> b, b -> c ... strewn over a long document of filler, and questions at its end."""

from dataclasses import dataclass

import torch

from .batch import Batch, different


@dataclass(frozen=True)
class FactChains:
    """Chains of `hops` pairs, every pair in a drawn place; after a token of a chain, the chain's last token is asked for.

    A document is filler words; each pair takes two neighbouring tokens of it, at least one filler word stands between two
    pairs, and their places and order are drawn evenly over the whole. The questions end it: a token, then the mark, as
    often as there are questions. With one hop this is recall; with more, each hop needs another distant pair, and pairs
    of a chain come in any order. The last question's token is the document's last but one.

    Attributes:
        tokens: Of an example, questions included.
        hops, chains: Pairs of a chain, and chains.
        questions: How many are asked. `hops * chains` asks for every token that has a pair, in a drawn order, the middle
            of chains too; fewer ask only for first tokens, where all hops must be taken, of different chains.
        facts_in: The share of the document, from its beginning, in which pairs lie.
        filler, vocabulary: Token 0 is the mark, filler words are 1 to `filler`, and names come from the rest, each drawn
            once.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    tokens: int
    hops: int
    chains: int
    questions: int = 1
    facts_in: float = 1.0
    filler: int = 255
    vocabulary: int = 8192

    def __post_init__(self) -> None:
        pairs = self.hops * self.chains
        if self.hops < 1 or self.chains < 1:
            raise ValueError(f"hops and chains must be at least 1, got {self.hops} and {self.chains}")
        if not 1 <= self.questions <= self.chains and self.questions != pairs:
            raise ValueError(
                f"questions must be 1 to {self.chains} (first tokens) or {pairs} (all), got {self.questions}"
            )
        if not 0.0 < self.facts_in <= 1.0:
            raise ValueError(f"facts_in must lie above 0 and at most at 1, got {self.facts_in}")
        if 3 * pairs > self.room:
            raise ValueError(f"tokens must leave {3 * pairs} for {pairs} pairs before {self.questions} questions, "
                             f"got {self.tokens}, of which {self.room} may hold pairs")  # fmt: skip
        if self.filler < 1 or self.vocabulary - 1 - self.filler < self.chains * (self.hops + 1):
            raise ValueError(f"vocabulary must hold the mark, {self.filler} filler words and "
                             f"{self.chains * (self.hops + 1)} names, got {self.vocabulary}")  # fmt: skip

    @property
    def room(self) -> int:
        """Tokens among which the pairs lie, from the document's first on."""
        return int((self.tokens - 2 * self.questions) * self.facts_in)

    def draw(self, examples: int, generator: torch.Generator) -> Batch:
        device, pairs = generator.device, self.hops * self.chains
        body = self.tokens - 2 * self.questions
        names = 1 + self.filler + different(
            examples, self.vocabulary - 1 - self.filler, self.chains * (self.hops + 1), generator
        )  # fmt: skip
        names = names.view(examples, self.chains, self.hops + 1)
        first, second = names[:, :, :-1].flatten(1), names[:, :, 1:].flatten(1)
        # Places with room for a pair and a filler word: different ones of a row from which two tokens a pair were taken.
        starts = different(examples, self.room - 2 * pairs, pairs, generator)
        starts = starts + 2 * (starts[:, :, None] > starts[:, None, :]).sum(-1)
        tokens = torch.randint(
            1, self.filler + 1, (examples, self.tokens), generator=generator, device=device, dtype=torch.int64
        )
        tokens = tokens.scatter(1, starts, first).scatter(1, starts + 1, second)
        if self.questions == pairs:
            asked = different(examples, pairs, pairs, generator)
        else:
            asked = different(examples, self.chains, self.questions, generator) * self.hops
        at = body + 2 * torch.arange(self.questions, device=device).expand(examples, -1)
        tokens = tokens.scatter(1, at, first.gather(1, asked)).scatter(1, at + 1, 0)
        answers = names[:, :, -1].gather(1, asked // self.hops)
        return Batch(tokens, at, answers)
