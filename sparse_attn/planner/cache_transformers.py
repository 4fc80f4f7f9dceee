"""What `DynamicCache` of transformers stores after a forward pass.

Grown layers keep every token. A sliding layer keeps W - 1 entries (the query brings its own), a chunked one likewise
C - 1, since the cache treats chunks as windows. A convolution's state has K columns where K - 1 would do.
Source: transformers, cache_utils.py (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer).
"""

from __future__ import annotations

from .records import Memory


def stored(memory: Memory, tokens: int) -> int:
    """Numbers of one term in the cache's tensors after `tokens` tokens."""
    if memory.kernel > 1:
        return memory.elements // (memory.kernel - 1) * memory.kernel
    if memory.ring is not None and memory.limit is not None:
        # `keys[:, :, -W + 1:]`: for W = 1 that is -0, which keeps everything.
        kept = tokens if memory.limit == 1 else min(tokens, memory.limit - 1)
        return memory.elements * kept * (2 if memory.twice else 1)
    return memory.elements * memory.entries(tokens)
