"""How many bytes of keys and values a model keeps: what transformers allocates now, and what a pattern needs at all.

Pure arithmetic over a config; no keys are made.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from ..patterns import Pattern, Window
from ..patterns.live import live_mask
from .sparsify import Patterns, layer_patterns


class CacheBytes(NamedTuple):
    """KV-cache sizes in bytes.

    Attributes:
        allocated: What transformers' DynamicCache holds: every token on a full-attention layer, the last W - 1 on a
            layer with a sliding window W. A pattern does not change it: nothing is evicted yet.
        needed: The keys and values that a later query may still see under the pattern; a cache that evicts the rest
            would hold this.
    """

    allocated: int
    needed: int


def cache_bytes(
    model: Any, pattern: Patterns | None, n_tokens: int, *, batch_size: int = 1, bytes_per_number: int | None = None
) -> CacheBytes:
    """KV-cache bytes once `n_tokens` tokens have been read.

    bytes = 2 * batch_size * Hkv * D * bytes_per_number * sum over layers of the keys held

    Args:
        model: A transformers model, or its config.
        pattern: As for `sparsify`; None: dense.
        n_tokens: Tokens read so far, in each row.
        batch_size: Rows.
        bytes_per_number: None: that of the model's dtype (of a config without one: 4).

    Raises:
        ValueError: a count that is no number of tokens or rows, or a pattern that does not fit the model.

    >>> from transformers import LlamaConfig
    >>> config = LlamaConfig(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=8)
    >>> cache_bytes(config, Window(64) | Sinks(4), 1000, bytes_per_number=4)  # 64 - 1 + 4 of 1000 keys in each layer
    CacheBytes(allocated=128000, needed=8576)
    """
    for name, count, least in (("n_tokens", n_tokens, 0), ("batch_size", batch_size, 1)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {count!r}")
    config = getattr(model, "config", model).get_text_config(decoder=True)
    windows = own_windows(model)
    patterns = layer_patterns({} if pattern is None else pattern, list(range(len(windows))))
    allocated = needed = 0
    for own, window in zip(patterns.values(), windows, strict=True):
        needed += live_keys(own if window is None else own.within(Window(window)), n_tokens)
        # transformers keeps all keys for a window of one: it slices from -(W - 1), which is 0.
        allocated += n_tokens if window in (None, 1) else min(n_tokens, window - 1)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if bytes_per_number is None:
        bytes_per_number = (getattr(model, "dtype", None) or torch.float32).itemsize
    per_key = 2 * batch_size * heads * head_dim * bytes_per_number
    return CacheBytes(allocated * per_key, needed * per_key)


def own_windows(model: Any) -> list[int | None]:
    """Each layer's own sliding window, as transformers' cache has it; None: the layer sees everything.

    Args:
        model: A transformers model, or its config.
    """
    config = getattr(model, "config", model).get_text_config(decoder=True)
    return [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers]


@lru_cache(maxsize=256)  # the layers of a model mostly share their pattern
def live_keys(pattern: Pattern, n_keys: int) -> int:
    """How many of the first `n_keys` keys a causal query at position `n_keys` or later may still see.

    `live_mask` says which; of patterns that tell examples apart, the example that keeps most counts.

    Cost: O(n_keys) bytes and time for each term.

    >>> live_keys(Window(64) | Sinks(4), 1000), live_keys(Chunked(64), 1000), live_keys(Full(), 1000)
    (67, 40, 1000)
    """
    if pattern.examples is not None:
        return max(live_keys(pattern.example(index), n_keys) for index in range(pattern.examples))
    return int(live_mask(pattern, n_keys).sum())
