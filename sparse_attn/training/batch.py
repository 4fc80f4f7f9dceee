"""What a model is trained on: tokens, the positions where something is asked, and the answers; and how they are drawn."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..evals.tasks.token_level import IGNORED, TokenBatch


@dataclass(frozen=True)
class Batch:
    """Examples of a task.

    Attributes:
        tokens: ``[B, T]``, int64.
        at: ``[B, Q]``: positions after which an answer is asked for, the same number in each example, so that shapes never
            change.
        answers: ``[B, Q]``: the token that should follow.
    """

    tokens: Tensor
    at: Tensor
    answers: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(self.tokens.to(device), self.at.to(device), self.answers.to(device))


class Task(Protocol):
    """Draws batches on a generator's device: no number comes from anywhere else, and no step waits for the host."""

    def draw(self, examples: int, generator: torch.Generator) -> Batch: ...


def from_token_batch(batch: TokenBatch) -> Batch:
    """The examples of `evals`, whose labels stand beside every token, as positions and answers.

    Raises:
        ValueError: examples that ask for different numbers of tokens.
    """
    labels = torch.from_numpy(batch.labels)
    counts = (labels != IGNORED).sum(1)
    if len(counts) and int(counts.min()) != int(counts.max()):
        raise ValueError(
            f"batch must ask for the same number of tokens in each example, got {int(counts.min())} to {int(counts.max())}"
        )
    at = (labels != IGNORED).nonzero()[:, 1].view(len(labels), -1)
    return Batch(torch.from_numpy(batch.inputs), at, labels.gather(1, at))


def different(rows: int, below: int, count: int, generator: torch.Generator) -> Tensor:
    """In each row, `count` different numbers from 0 to below - 1, in a drawn order: ``[rows, count]``."""
    drawn = torch.rand(rows, below, generator=generator, device=generator.device)
    return drawn.topk(count, dim=1).indices if count < below else drawn.argsort(1)
