"""How often a model answers right."""

import torch
from torch import nn

from .batch import Batch


@torch.no_grad()
def accuracy(model: nn.Module, batch: Batch, *, examples: int = 64, autocast: torch.dtype | None = None) -> float:
    """The share of questions whose likeliest token is the answer, `examples` at a time.

    Args:
        autocast: The dtype of matrix products, as in training; None: the weights' own.
    """
    right = torch.zeros((), dtype=torch.int64, device=batch.tokens.device)
    for start in range(0, len(batch.tokens), examples):
        part = slice(start, start + examples)
        with torch.autocast(batch.tokens.device.type, autocast, enabled=autocast is not None):
            logits = model(batch.tokens[part], batch.at[part])
        right += (logits.argmax(-1) == batch.answers[part]).sum()
    return int(right) / batch.answers.numel()
