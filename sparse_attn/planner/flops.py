"""Arithmetic of a forward pass: products with the weights, and attention over the pairs that each layer keeps.

A product with a weight costs 2 FLOPs a parameter; attention 2 x Hq x (Dk + Dv) for a kept pair (causal pairs only).
Softmax, norms and activations are not counted. Source of the convention: Kaplan et al. 2020, arXiv:2001.08361.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .bill import bits_of, bytes_of, check_count, shard
from .records import Memory, Model, Scores
from .weights import active_bytes


@dataclass(frozen=True)
class Flops:
    """FLOPs of one sequence's pass: products with weights, and attention with recurrences."""

    linear: int
    attention: int

    @property
    def total(self) -> int:
        """Both."""
        return self.linear + self.attention


def prefill_flops(model: Model, context: int) -> Flops:
    """Reading a prompt of `context` tokens; logits for its last token only.

    Encoders count all pairs both ways, as their `Scores` say.
    """
    check_count("context", context)
    attention = sum(
        score.flops * pairs(score, context, model.causal) for layer in model.layers for score in layer.scores
    )
    inside, head = _multiplied(model)
    return Flops(2 * (inside * context + head), attention)


def decode_flops(model: Model, context: int) -> Flops:
    """One more token after `context` tokens."""
    check_count("context", context, least=0)
    attention = sum(
        score.flops * keys_of(score, context + 1)
        for layer in model.layers
        for score in layer.scores
        if not score.prefill_only
    )
    inside, head = _multiplied(model)
    return Flops(2 * (inside + head), attention)


def attention_flops(model: Model, context: int) -> int:
    """`prefill_flops(...).attention`."""
    return prefill_flops(model, context).attention


@dataclass(frozen=True)
class Traffic:
    """Bytes that one decode step reads: weights once, and every sequence's cache."""

    weights: int
    kv: int

    @property
    def total(self) -> int:
        """Both."""
        return self.weights + self.kv


def decode_bytes(
    model: Model,
    context: int,
    *,
    batch: int = 1,
    kv_dtype: str = "bf16",
    weights: str | None = None,
    tensor_parallel: int = 1,
) -> Traffic:
    """Bytes that one of `tensor_parallel` GPUs reads for one new token of each of `batch` sequences of `context` tokens.

    An index reads all its own keys and then only the entries that it chose; a state is read whole (and written back,
    which is not counted). Experts: the expected number of distinct ones.
    """
    check_count("context", context, least=0)
    check_count("batch", batch)
    read = sum(count * _read_bytes(term, model, kv_dtype, context, tensor_parallel) for term, count in _terms(model))
    return Traffic(active_bytes(model, weights, batch) // tensor_parallel, batch * read)


def prefill_bytes(
    model: Model, context: int, *, chunk: int = 2048, kv_dtype: str = "bf16", weights: str | None = None
) -> Traffic:
    """Bytes read for a prompt of `context` tokens in steps of `chunk`: weights and what is kept so far, once a step.

    The ideal of flash attention: a step reads each kept entry once, whatever the number of its queries. Activations are
    not counted.
    """
    check_count("context", context)
    check_count("chunk", chunk)
    steps = -(-context // chunk)
    ends = [min(step * chunk, context) for step in range(1, steps + 1)]
    read = sum(
        count * sum(_read_bytes(term, model, kv_dtype, end, 1, once=False) for end in ends)
        for term, count in _terms(model)
    )
    return Traffic(steps * active_bytes(model, weights, min(chunk, context)), read)


def _terms(model: Model) -> list[tuple[Memory, int]]:
    """What the layers read, and how many of them read such a term."""
    found = Counter(memory for layer in model.layers for memory in layer_memory(model, layer.index))
    return list(found.items())


def _read_bytes(memory: Memory, model: Model, kv_dtype: str, context: int, share: int, *, once: bool = True) -> int:
    """One term's bytes; `once` false: many queries choose, so that an index reaches all entries."""
    entries = memory.entries(context)
    if once and memory.read is not None:
        entries = min(entries, memory.read)
    return bytes_of(memory.elements * entries * bits_of(memory, model, kv_dtype), shard(memory, share))


def layer_memory(model: Model, index: int) -> tuple[Memory, ...]:
    """What a layer reads: its own terms, or those of the layer whose keys and values it shares."""
    layer = model.layers[index]
    return model.layers[layer.shares_with].memory if layer.shares_with is not None else layer.memory


def pairs(score: Scores, tokens: int, causal: bool = True) -> int:
    """(query, key) pairs of one layer over a prompt: the sum of `keys_of` over its positions, in closed form."""
    n, size = tokens, score.size
    if score.rule == "token":
        return n
    if not causal:
        return _both_ways(score, n)
    if score.rule == "full":
        return n * (n + 1) // 2
    if score.rule in ("window", "top"):
        w = min(size, n)
        return w * (w + 1) // 2 + (n - w) * w
    if score.rule == "chunk":
        whole, rest = divmod(n, size)
        return whole * size * (size + 1) // 2 + rest * (rest + 1) // 2
    if score.top is None:
        whole, rest = divmod(n, size)
        return size * whole * (whole - 1) // 2 + whole * (rest + 1)
    # position i (from 1) sees min(top, i // size) summaries
    edge = min(n + 1, (score.top + 1) * size)
    whole, rest = divmod(edge - 1, size)
    return size * whole * (whole - 1) // 2 + whole * (rest + 1) + (n - edge + 1) * score.top


def keys_of(score: Scores, position: int) -> int:
    """Keys that the query at `position` (from 1: with `position` keys before and at it) scores."""
    if score.rule == "token":
        return 1
    if score.rule == "full":
        return position
    if score.rule in ("window", "top"):
        return min(position, score.size)
    if score.rule == "chunk":
        return (position - 1) % score.size + 1
    seen = position // score.size
    return seen if score.top is None else min(seen, score.top)


def _both_ways(score: Scores, n: int) -> int:
    if score.rule == "full":
        return n * n
    half = min(score.size // 2, n - 1)  # keys on each side of a query, clipped at both ends of the sequence
    return n * (2 * half + 1) - half * (half + 1)


def _multiplied(model: Model) -> tuple[int, int]:
    """Parameters that every token multiplies with inside the stack, and those of the head (a tied table is one)."""
    inside = head = 0
    for part in model.all_weights:
        if not part.computes:
            continue
        if part.part in ("head", "embedding"):
            head += part.total
        else:
            inside += part.active * part.uses
    return inside, head
