"""Chosen blocks written down as a dense mask: what a choice means, key by key."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sparse_attn.patterns import Pattern, TopBlocks
from sparse_attn.patterns.chosen import split_choice


def draw_choice(
    pattern: Pattern,
    shape: tuple[int, int, int],
    k: int,
    q_bounds: Sequence[int],
    k_bounds: Sequence[int],
    seed: int = 0,
) -> Tensor:
    """A random choice ``[B, N, H, K]`` of distinct blocks of each document, with entries -1 among them."""
    term = _term(pattern)
    batch, _, heads = shape
    draw = np.random.default_rng(seed)
    rows = []
    for (q0, q1), (k0, k1) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True):
        n_blocks = -(-(k1 - k0) // term.block)
        for _ in range(term.tiles(q1 - q0, k1 - k0)):
            row = np.full((batch, heads, k), -1)
            for b in range(batch):
                for h in range(heads):
                    some = draw.permutation(n_blocks)[: draw.integers(k + 1)]
                    row[b, h, draw.permutation(k)[: len(some)]] = some
            rows.append(row)
    found = np.stack(rows, axis=1) if rows else np.zeros((batch, 0, heads, k))
    return torch.from_numpy(found).to(torch.int32)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, pattern: Pattern | Sequence[Pattern], causal: bool, scale: float,
    q_bounds: Sequence[int], k_bounds: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Out and LSE in q's dtype, by a dense mask of the chosen keys that no static part names."""
    hq, hkv = q.shape[2], k.shape[2]
    patterns = [pattern] * hkv if isinstance(pattern, Pattern) else list(pattern)
    keep = torch.stack(
        [
            torch.stack([
                _mask(patterns[h * hkv // hq], selected[b, :, h * selected.shape[2] // hq].tolist(), causal, q_bounds, k_bounds)
                for h in range(hq)
            ])
            for b in range(q.shape[0])
        ]
    ).to(q.device)  # fmt: skip
    keys, values = (x.repeat_interleave(hq // hkv, 2).transpose(1, 2) for x in (k, v))
    logits = (q.transpose(1, 2) @ keys.transpose(2, 3) * scale).masked_fill(~keep, float("-inf"))
    weights = logits.softmax(-1).masked_fill(~keep, 0.0)
    wide = logits if q.dtype == torch.float64 else logits.float()
    return (weights @ values).transpose(1, 2), wide.logsumexp(-1).transpose(1, 2)


def _mask(
    pattern: Pattern, rows: list[list[int]], causal: bool, q_bounds: Sequence[int], k_bounds: Sequence[int]
) -> Tensor:
    term = _term(pattern)
    choice = split_choice(pattern)
    assert choice is not None
    keep = np.zeros((q_bounds[-1], k_bounds[-1]), dtype=bool)
    first = 0
    for (q0, q1), (k0, k1) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True):
        positions = np.arange(k1 - k0 - (q1 - q0), k1 - k0)
        j = np.arange(k1 - k0)
        static = choice.static.mask(q1 - q0, k1 - k0, causal=causal) if choice.static is not None else False
        own = np.zeros((q1 - q0, k1 - k0), dtype=bool)
        for t, i in enumerate(positions):
            row = rows[first + i // term.rows - positions[0] // term.rows]
            own[t] = np.isin(j // term.block, [block for block in row if block >= 0])
            if causal:
                own[t] &= j <= i
            if choice.limit is not None:
                own[t] &= choice.limit.keeps(np.array([i]), j, k1 - k0, causal)
        keep[q0:q1, k0:k1] = own & ~np.asarray(static)
        first += term.tiles(q1 - q0, k1 - k0)
    return torch.from_numpy(keep)


def _term(pattern: Pattern) -> TopBlocks:
    choice = split_choice(pattern)
    assert choice is not None
    return choice.term
