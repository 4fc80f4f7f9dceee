"""Reading a long prompt a chunk at a time: bounded memory, and something to show while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

CHUNK = 512  # tokens


@torch.inference_mode()
def prefill(
    model: PreTrainedModel,
    tokens: Sequence[int],
    *,
    chunk: int = CHUNK,
    on_tokens: Callable[[int], None] = lambda done: None,
) -> DynamicCache:
    """The KV cache of a prompt, read `chunk` tokens at a time; the result is that of one reading.

    Args:
        model: A causal language model, sparse or not.
        tokens: The prompt; none gives an empty cache.
        on_tokens: Told how many tokens have been read, after each chunk.

    Raises:
        ValueError: a chunk below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    cache = DynamicCache()
    for start in range(0, len(tokens), chunk):
        ids = torch.tensor([list(tokens[start : start + chunk])], device=model.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        on_tokens(start + ids.shape[1])
    return cache
