"""How often a model answers right."""

import torch
from torch import nn

from .batch import Batch


@torch.no_grad()
def accuracy(model: nn.Module, batch: Batch, *, examples: int = 64, autocast: torch.dtype | None = None) -> float:
    """The share of questions whose likeliest token is the answer, `examples` at a time; waits for the device.

    The model is asked in eval mode (no dropout, a router without noise); each of its modules then goes back to the mode
    that it was in. A model that a `Trainer` trains on a GPU is asked after ``trainer.wait()``.

    Args:
        autocast: The dtype of matrix products, as in training; None: the weights' own.

    Raises:
        ValueError: a batch that asks nothing, or `examples` below 1.
    """
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    if not batch.answers.numel():
        raise ValueError(f"batch must ask for at least one answer, got answers of shape {tuple(batch.answers.shape)}")
    right = torch.zeros((), dtype=torch.int64, device=batch.tokens.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for start in range(0, len(batch.tokens), examples):
            part = slice(start, start + examples)
            with torch.autocast(batch.tokens.device.type, autocast, enabled=autocast is not None):
                logits = model(batch.tokens[part], batch.at[part])
            right += (logits.argmax(-1) == batch.answers[part]).sum()
    finally:
        for module, training in modes:
            module.training = training
    return int(right) / batch.answers.numel()
