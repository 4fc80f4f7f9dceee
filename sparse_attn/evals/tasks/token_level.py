"""Tasks made of bare token numbers, for models trained from scratch: no tokenizer, no language.

A batch is `inputs` and `labels`, both ``[examples, tokens]``: labels[b, t] is the token that should follow inputs[b, :t+1],
and `IGNORED` where nothing is asked. Token 0 is filler; keys are drawn from 1 to V/2 - 1 and values from V/2 to V - 1.

Source: recall and its defaults (V = 8,192; 64 tokens with 4 pairs, 128 with 8, 256 with 16, 512 with 64; queries at
distances that follow a power law of 0.01) are those of Zoology, arXiv:2312.04927, figure 2 and its published configs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]

IGNORED = -100  # what torch's cross entropy leaves out by default
VOCABULARY = 8192
POWER = 0.01
ZOOLOGY_SETTINGS = ((64, 4), (128, 8), (256, 16), (512, 64))  # tokens of an example, and its key-value pairs
ZOOLOGY_EXAMPLES = {"train": 100_000, "test": 3_000}


@dataclass(frozen=True)
class TokenBatch:
    """Examples of a token-level task.

    Attributes:
        inputs, labels: ``[examples, tokens]``, int64.
        chance: How often a guess among the tokens that could be asked for is right.
    """

    inputs: Tokens
    labels: Tokens
    chance: float

    def accuracy(self, predictions: Tokens) -> float:
        """The share of asked positions at which the prediction is the label.

        Raises:
            ValueError: predictions of another shape.
        """
        if predictions.shape != self.labels.shape:
            raise ValueError(f"predictions must have shape {self.labels.shape}, got {predictions.shape}")
        asked = self.labels != IGNORED
        return float((predictions == self.labels)[asked].mean())


def multi_query_recall(
    examples: int,
    tokens: int,
    pairs: int,
    *,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    power: float = POWER,
    filler: bool = False,
) -> TokenBatch:
    """Key-value pairs, then every key again in drawn places: after each, its value is asked for.

    P(a query stands g places after the pairs) is proportional to g^(power - 1), so that small distances prevail, as
    they do between repeated words of a language.

    Args:
        examples, tokens: Shape of the batch; `tokens` is even.
        pairs: Different keys of an example; 4 * pairs <= tokens.
        vocabulary: V, at least 4 * pairs.
        filler: Draw the tokens that are neither pair nor query from the whole vocabulary instead of 0.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    _check(tokens, pairs, vocabulary)
    random = _Random(seed, examples, tokens, pairs)
    keys, values = random.keys_and_values(examples, pairs, vocabulary)
    places = (tokens - 2 * pairs) // 2
    weights = np.arange(1, places + 1, dtype=np.float64) ** (power - 1)
    gaps = random.weighted_choice(examples, weights, pairs)
    return _recall(random, examples, tokens, keys, values, gaps, vocabulary, filler)


def recall(
    examples: int, tokens: int, pairs: int, *, seed: int = 0, vocabulary: int = VOCABULARY, filler: bool = False
) -> TokenBatch:
    """Key-value pairs, filler, and one key again at the very end: its value is asked for.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    _check(tokens, pairs, vocabulary)
    random = _Random(seed, examples, tokens, pairs)
    keys, values = random.keys_and_values(examples, pairs, vocabulary)
    at = random.below(examples, pairs)[:, None]
    asked_keys, asked_values = np.take_along_axis(keys, at, 1), np.take_along_axis(values, at, 1)
    inputs = np.zeros((examples, tokens), dtype=np.int64)
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    inputs[:, -1:] = asked_keys
    if filler:
        _fill(random, inputs, 2 * pairs, tokens - 1, vocabulary)
    labels = np.full_like(inputs, IGNORED)
    labels[:, -1:] = asked_values
    return TokenBatch(inputs, labels, 1 / pairs)


def hop_chains(
    examples: int, tokens: int, hops: int, chains: int = 4, *, seed: int = 0, vocabulary: int = VOCABULARY
) -> TokenBatch:
    """Pairs that form chains a -> b -> c ..., in a drawn order; at the end stands a chain's first token, and the token
    `hops` pairs further is asked for.

    Args:
        hops: Pairs to follow, from 1 on.
        chains: Chains of an example; 2 * hops * chains + 1 <= tokens.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    if hops < 1 or chains < 2 or 2 * hops * chains + 1 > tokens:
        raise ValueError(f"{chains} chains of {hops} hops take {2 * hops * chains + 1} tokens and at least 2 chains of 1 hop "
                         f"are needed, got {tokens} tokens")  # fmt: skip
    if vocabulary - 1 < chains * (hops + 1):
        raise ValueError(f"vocabulary must be at least {chains * (hops + 1) + 1} for {chains} chains, got {vocabulary}")
    random = _Random(seed, examples, tokens, hops * 1000 + chains)
    names = 1 + random.permuted(examples, vocabulary - 1, chains * (hops + 1)).reshape(examples, chains, hops + 1)
    links = np.stack([names[:, :, :-1], names[:, :, 1:]], axis=-1).reshape(examples, chains * hops, 2)
    order = random.permuted(examples, chains * hops, chains * hops)
    links = np.take_along_axis(links, order[:, :, None], 1)
    inputs = np.zeros((examples, tokens), dtype=np.int64)
    inputs[:, : 2 * chains * hops] = links.reshape(examples, -1)
    at = random.below(examples, chains)[:, None]
    inputs[:, -1:] = np.take_along_axis(names[:, :, 0], at, 1)
    labels = np.full_like(inputs, IGNORED)
    labels[:, -1:] = np.take_along_axis(names[:, :, -1], at, 1)
    return TokenBatch(inputs, labels, 1 / chains)


def copying(examples: int, tokens: int, *, seed: int = 0, vocabulary: int = VOCABULARY) -> TokenBatch:
    """A row of tokens, a mark (token 0), and the row again: each of its tokens is asked for.

    Raises:
        ValueError: fewer than 3 tokens, or an even number.
    """
    if tokens < 3 or tokens % 2 == 0:
        raise ValueError(f"tokens must be odd and at least 3 (a row, a mark, the row again), got {tokens}")
    random = _Random(seed, examples, tokens, 0)
    size = tokens // 2
    row = 1 + random.below(examples * size, vocabulary - 1).reshape(examples, size)
    inputs = np.concatenate([row, np.zeros((examples, 1), dtype=np.int64), row], axis=1)
    labels = np.full_like(inputs, IGNORED)
    labels[:, size : 2 * size] = row
    return TokenBatch(inputs, labels, 1 / (vocabulary - 1))


TOKEN_TASKS: dict[str, Callable[..., TokenBatch]] = {
    "recall": recall,
    "multi_query_recall": multi_query_recall,
    "hop_chains": hop_chains,
    "copying": copying,
}


def _check(tokens: int, pairs: int, vocabulary: int) -> None:
    if tokens % 2 or pairs < 1 or 4 * pairs > tokens:
        raise ValueError(f"tokens must be even and at least 4 times the {pairs} pairs, got {tokens}")
    if vocabulary < 4 * pairs:
        raise ValueError(f"vocabulary must be at least {4 * pairs}, four times the pairs, got {vocabulary}")


def _recall(
    random: _Random,
    examples: int,
    tokens: int,
    keys: Tokens,
    values: Tokens,
    gaps: Tokens,
    vocabulary: int,
    filler: bool,
) -> TokenBatch:
    pairs = keys.shape[1]
    inputs = np.zeros((examples, tokens), dtype=np.int64)
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    at = 2 * pairs + 2 * gaps
    np.put_along_axis(inputs, at, keys, 1)
    labels = np.full_like(inputs, IGNORED)
    np.put_along_axis(labels, at, values, 1)
    if filler:
        _fill(random, inputs, 2 * pairs, tokens, vocabulary)
    return TokenBatch(inputs, labels, 1 / pairs)


def _fill(random: _Random, inputs: Tokens, start: int, stop: int, vocabulary: int) -> None:
    part = inputs[:, start:stop]
    drawn = random.below(part.size, vocabulary).reshape(part.shape)
    part[part == 0] = drawn[part == 0]


class _Random:
    """Arrays from the raw bits of PCG64, which numpy keeps the same in every version and on every machine."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def below(self, count: int, n: int) -> Tokens:
        return (self._bits.random_raw(count) % np.uint64(n)).astype(np.int64)

    def uniform(self, rows: int, columns: int) -> NDArray[np.float64]:
        """Between 0 and 1, never either."""
        raw = self._bits.random_raw(rows * columns).reshape(rows, columns)
        return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53

    def permuted(self, rows: int, n: int, count: int) -> Tokens:
        """In each row, `count` different numbers below n; a chunk of rows at a time, so that memory stays bounded."""
        step = max(1, (1 << 24) // n)
        parts = [
            np.argsort(self.uniform(min(step, rows - start), n), axis=1, kind="stable")[:, :count]
            for start in range(0, rows, step)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, count), dtype=np.int64)

    def weighted_choice(self, rows: int, weights: NDArray[np.float64], count: int) -> Tokens:
        """In each row, `count` different places, drawn one after another in proportion to the weights of those left.

        The smallest of Exp(1) / weight come first: Efraimidis and Spirakis 2006.
        """
        arrival = -np.log(self.uniform(rows, len(weights))) / weights
        return np.argsort(arrival, axis=1, kind="stable")[:, :count]

    def keys_and_values(self, examples: int, pairs: int, vocabulary: int) -> tuple[Tokens, Tokens]:
        half = vocabulary // 2
        keys = 1 + self.permuted(examples, half - 1, pairs)
        values = half + self.permuted(examples, vocabulary - half, pairs)
        return keys, values
