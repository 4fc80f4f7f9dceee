"""Multi-query recall, drawn on the device: the distribution of `evals.tasks.token_level.multi_query_recall`."""

from dataclasses import dataclass

import torch

from ..evals.tasks.token_level import POWER, VOCABULARY
from .batch import Batch, different


@dataclass(frozen=True)
class MultiQueryRecall:
    """Key-value pairs, then every key again in drawn places: after each, its value is asked for.

    Attributes:
        tokens, pairs: Of an example; `tokens` is even and at least 4 * pairs.
        vocabulary: Keys come from 1 to V/2 - 1, values from V/2 on; 0 is filler.
        power: P(a query g places after the pairs) is proportional to g^(power - 1).

    Raises:
        ValueError: sizes that do not fit each other.

    Source: Zoology, arXiv:2312.04927.
    """

    tokens: int
    pairs: int
    vocabulary: int = VOCABULARY
    power: float = POWER

    def __post_init__(self) -> None:
        if self.tokens % 2 or self.pairs < 1 or 4 * self.pairs > self.tokens:
            raise ValueError(f"tokens must be even and at least 4 times the {self.pairs} pairs, got {self.tokens}")
        if self.vocabulary < 4 * self.pairs:
            raise ValueError(
                f"vocabulary must be at least {4 * self.pairs}, four times the pairs, got {self.vocabulary}"
            )

    def draw(self, examples: int, generator: torch.Generator) -> Batch:
        device, half, pairs = generator.device, self.vocabulary // 2, self.pairs
        keys = 1 + different(examples, half - 1, pairs, generator)
        values = half + different(examples, self.vocabulary - half, pairs, generator)
        places = (self.tokens - 2 * pairs) // 2
        # Different places in proportion to their weights: the first to arrive at rates of these weights (Efraimidis and
        # Spirakis 2006), as the host's generator draws them.
        rates = torch.arange(1, places + 1, device=device, dtype=torch.float32) ** (self.power - 1.0)
        clocks = -torch.log(1.0 - torch.rand(examples, places, generator=generator, device=device)) / rates
        at = 2 * pairs + 2 * clocks.topk(pairs, dim=1, largest=False).indices
        tokens = torch.zeros(examples, self.tokens, dtype=torch.int64, device=device)
        tokens[:, 0 : 2 * pairs : 2] = keys
        tokens[:, 1 : 2 * pairs : 2] = values
        return Batch(tokens.scatter(1, at, keys), at, values)
