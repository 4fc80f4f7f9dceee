"""Which numbers of GPUs can share a model by its heads, and what each of them then holds.

Tensor parallelism over G GPUs cuts query heads, KV heads, MLP width and vocabulary. Query heads must divide evenly; KV
heads must divide evenly or be copied evenly (G a multiple of Hkv). A latent (MLA) has one head: every GPU holds it whole.
Source: Shoeybi et al. 2019, arXiv:1909.08053; vLLM's check of `num_attention_heads` and `num_key_value_heads`.
"""

from __future__ import annotations

from .records import Model
from .weights import weights_cost

_MOST = 64


def allowed_splits(model: Model, most: int = _MOST) -> tuple[int, ...]:
    """Numbers of GPUs from 1 to `most` that respect every layer's heads."""
    return tuple(count for count in range(1, most + 1) if not why_not(model, count))


def why_not(model: Model, count: int) -> str:
    """Why `count` GPUs cannot share the model, or ""."""
    if count == 1:
        return ""
    for layer in model.layers:
        if layer.heads and layer.heads % count:
            return f"layer {layer.index} has {layer.heads} query heads, which {count} does not divide"
        kept = layer.kv_heads
        if kept and kept % count and count % kept:
            return f"layer {layer.index} has {kept} KV heads, which neither divide nor are divided by {count}"
        for memory in layer.memory:
            if not memory.per_token and memory.heads > 1 and memory.heads % count and count % memory.heads:
                return f"layer {layer.index}'s {memory.name} has {memory.heads} heads, which {count} does not divide"
    return ""


def weights_per_gpu(model: Model, dtype: str | None, count: int) -> int:
    """Bytes of weights on each of `count` GPUs: matrices are cut, norms and routers are copied.

    KV projections are copied too where G is above Hkv; that part is small and is counted as cut.
    """
    cost = weights_cost(model, dtype)
    if count == 1:
        return cost.total_bytes
    listed = sum(size for _, _, size in cost.parts)
    copied = sum(size for name, _, size in cost.parts if name in ("norms", "router"))
    scale = cost.total_bytes / listed if listed else 1.0
    return int((-(-(listed - copied) // count) + copied) * scale)
