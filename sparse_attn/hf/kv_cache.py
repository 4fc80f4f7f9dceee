"""How many bytes of keys and values a model keeps: what transformers allocates now, and what a pattern needs at all.

Pure arithmetic over a config; no keys are made.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from ..patterns import Anchors, Chunked, Dilated, Global, Pattern, Sinks, Strided, Window
from ..patterns.pattern import Within
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

    A window of W keeps the last W - 1; a chunk, those of the chunk that is not complete; sinks, strides and global
    positions, their columns. Global queries still to come look at every key, and random blocks may be drawn by any
    later query: both keep all. A term cut to a window keeps nothing outside it.

    Cost: O(n_keys) bytes and time for each term.

    >>> live_keys(Window(64) | Sinks(4), 1000), live_keys(Chunked(64), 1000), live_keys(Full(), 1000)
    (67, 40, 1000)
    """
    if pattern.examples is not None:
        return max(live_keys(pattern.example(index), n_keys) for index in range(pattern.examples))
    keep = np.zeros(n_keys, dtype=bool)
    for cut in pattern.terms:
        if isinstance(cut, Within):
            _mark(keep, cut.term, cut.limit.left)
        else:
            _mark(keep, cut, None)
    return int(keep.sum())


def _mark(keep: np.ndarray, term: Pattern, limit: int | None) -> None:
    """Mark the keys that a later query may see through one term, no further back than `limit` keys from itself."""
    n = len(keep)

    def first(query: int) -> int:
        return 0 if limit is None else max(0, min(n, query - limit + 1))

    match term:
        case Window():
            keep[max(first(n), n - term.left + 1) :] = True
        case Chunked():
            keep[max(first(n), n - n % term.size) :] = True
        case Sinks():
            keep[first(n) : term.n] = True
        case Strided():
            query = n if term.rows == "all" else n + (term.offset - n) % term.stride
            columns = np.arange(term.offset, n, term.stride)
            keep[columns[columns >= first(query)]] = True
        case Dilated():
            # A key's next query stands a multiple of the dilation after it; the greatest multiple allowed decides.
            reach = min(r for r in (term.window and term.window * term.dilation, limit, n + term.dilation) if r)
            keep[max(0, n - (reach - 1) // term.dilation * term.dilation) :] = True
        case Global():
            columns = np.array([p for p in term.shared if first(n) <= p < n], dtype=np.int64)
            keep[columns] = True
            later = [p for p in term.shared if p >= n]
            if later:
                keep[first(later[0]) :] = True
        case Anchors():
            pass
        case _:
            keep[first(n) :] = True
