"""Bytes that a sequence keeps: what grows with every token, what is bounded, and how engines allocate it.

Three accountings:

- "exact": the numbers that the next token needs, and nothing else. A window keeps its W keys.
- "transformers": as `DynamicCache` stores them after a forward pass (`cache_transformers.py`).
- "vllm": in pages, with its paddings and reserves (`cache_vllm.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction

from .bill import Item, KvCost, LayerCost, bits_of, bytes_of, check_count, plain, shard
from .cache_transformers import stored
from .cache_vllm import allocate, vllm_cost
from .records import Memory, Model

ACCOUNTINGS = ("exact", "transformers", "vllm")


def kv_cost(
    model: Model,
    context: int,
    *,
    batch: int = 1,
    kv_dtype: str = "bf16",
    accounting: str = "exact",
    chunk: int = 2048,
    tensor_parallel: int = 1,
) -> KvCost:
    """Bytes kept for `batch` sequences of `context` tokens each, on one of `tensor_parallel` GPUs.

    Per layer and term: elements x bits / 8 x entries. Encoders (`model.causal` false) keep nothing between calls.

    Args:
        model: From `describe`.
        context: Tokens of each sequence, the prompt's and the generated ones.
        kv_dtype: "bf16", "fp16", "fp8", "int8", "int4", "fp32".
        accounting: "exact", "transformers" or "vllm".
        chunk: Tokens of a prefill step; vLLM holds them beside a window while they are in flight.
        tensor_parallel: GPUs that share the heads; 1: the whole cache.

    Raises:
        ValueError: a negative or absurd number, an unknown dtype or accounting.

    >>> from sparse_attn.planner import describe
    >>> small = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    >>> cost = kv_cost(describe(small), 1000)
    >>> cost.growing_bytes_per_token, cost.total_bytes
    (512, 512000)
    """
    check_count("context", context)
    check_count("batch", batch)
    check_count("chunk", chunk)
    if accounting not in ACCOUNTINGS:
        raise ValueError(f"accounting must be one of {', '.join(ACCOUNTINGS)}, got {accounting!r}")
    if accounting == "vllm":
        return vllm_cost(model, context, batch, kv_dtype, chunk, tensor_parallel)
    if accounting == "transformers":
        return add_up(model, context, batch, kv_dtype, stored, accounting, tensor_parallel)
    return add_up(model, context, batch, kv_dtype, needed, accounting, tensor_parallel)


def one_sequence(
    model: Model, *, kv_dtype: str, accounting: str, chunk: int, tensor_parallel: int
) -> Callable[[int], tuple[int, int]]:
    """`kv_cost`'s total as a function of the context: bytes of one sequence, and bytes reserved once.

    For searches: what does not hang on the context is worked out once.
    """
    if accounting == "vllm":
        return allocate(model, kv_dtype, chunk, tensor_parallel).bytes_at
    count = stored if accounting == "transformers" else needed
    terms = Counter(memory for layer in model.layers if model.causal for memory in layer.memory)
    rows = [
        (memory, layers, bits_of(memory, model, kv_dtype), shard(memory, tensor_parallel))
        for memory, layers in terms.items()
    ]

    def kept(context: int) -> tuple[int, int]:
        return sum(n * bytes_of(count(memory, context) * bits, share) for memory, n, bits, share in rows), 0

    return kept


def needed(memory: Memory, tokens: int) -> int:
    """Numbers of one term that the next token needs after `tokens` tokens."""
    return memory.elements * memory.entries(tokens)


def add_up(
    model: Model,
    context: int,
    batch: int,
    kv_dtype: str,
    count: Callable[[Memory, int], int],
    accounting: str,
    tensor_parallel: int = 1,
) -> KvCost:
    """The bill, where `count(term, tokens)` says how many numbers are kept."""
    layers, growing, total, bounded = [], Fraction(0), 0, 0
    names: dict[str, list[Fraction | int]] = {}
    for layer in model.layers if model.causal else ():
        per_token, at_most = Fraction(0), 0
        for memory in layer.memory:
            bits = bits_of(memory, model, kv_dtype)
            share = shard(memory, tensor_parallel)
            here = bytes_of(count(memory, context) * bits, share)
            total += here
            line = names.setdefault(memory.name, [Fraction(0), 0])
            line[1] += here
            if memory.grows:
                rate = Fraction(memory.elements * bits, 8 * memory.every * share)
                per_token += rate
                line[0] += rate
            else:
                bounded += here
                at_most += bytes_of(count(memory, memory.limit or context) * bits, share)
        growing += per_token
        layers.append(LayerCost(layer.index, layer.kind, plain(per_token), at_most))
    items = tuple(Item(name, int(line[1]), plain(Fraction(line[0]))) for name, line in names.items())
    return KvCost(accounting, kv_dtype, context, batch, plain(growing), bounded, batch * total, tuple(layers), items)
