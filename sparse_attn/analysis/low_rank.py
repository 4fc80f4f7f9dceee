"""The low-rank view: dense attention as a window's part and a correction, and how much of the correction rank r catches."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RANKS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class HeadView:
    """One head; shares of the mass of an average query, whose weights sum to 1.

    Attributes:
        inside: What the window holds.
        sinks: What the first tokens hold, where they lie outside the window.
        outside: What lies outside the window, sinks included: the correction's mass.
        mass: For each rank, the part of `outside` that the best correction of that rank gives to the same pairs.
        energy: For each rank, the part of the correction's sum of squares that it holds.
        mass_behind_sinks, energy_behind_sinks: The same where window and sinks are attended to exactly, and the correction
            has only what lies outside both; shares of that rest.
    """

    inside: float
    sinks: float
    outside: float
    mass: tuple[float, ...]
    energy: tuple[float, ...]
    mass_behind_sinks: tuple[float, ...]
    energy_behind_sinks: tuple[float, ...]


@dataclass(frozen=True)
class LowRankView:
    """All heads of a layer."""

    tokens: int
    window: int
    sinks: int
    ranks: tuple[int, ...]
    heads: tuple[HeadView, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def low_rank_view(
    weights: Float[Tensor, "Hq T T"], *, window: int, sinks: int = 4, ranks: Sequence[int] = RANKS
) -> LowRankView:
    """How much of dense attention lies outside a window, and how much of that window + rank r and window + sinks catch.

    A = A_window + E, with A_window[i,j] = A[i,j] where i - window < j;  E_r = the best rank-r approximation of E (SVD)
    mass(r) = sum min(E, max(E_r, 0)) / sum E;   energy(r) = sum of the r largest squared singular values / of all

    r learned anchors can at best give such a correction: each query weighs r summaries, and each summary weighs the keys.
    The SVD is an upper bound in two ways: it may read all queries at once, and its weights may be negative.

    Args:
        weights: A layer's attention weights, causal, as `attention_maps` gives them; rows sum to 1.
        window: Keys that stay exact, the query's own included.
        sinks: First tokens that stay exact in the second comparison.
        ranks: In rising order.

    Raises:
        ValueError: weights that are no square, a window or rank below 1, or negative sinks.

    Where nothing lies outside, all of it is caught: shares are 1. Cost: O(Hq x T^3), some seconds for 9 heads of 1,024 tokens.
    Source: attention as sparse plus low rank: Chen et al. 2021, arXiv:2110.15343.
    """
    if weights.dim() != 3 or weights.shape[1] != weights.shape[2]:
        raise ValueError(f"weights must have shape [Hq, T, T], got {tuple(weights.shape)}")
    if window < 1 or sinks < 0:
        raise ValueError(f"window must be at least 1 and sinks at least 0, got {window} and {sinks}")
    if not ranks or min(ranks) < 1 or list(ranks) != sorted(ranks):
        raise ValueError(f"ranks must be positive and in rising order, got {list(ranks)}")
    n = weights.shape[1]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    outside = j <= i - window
    first = j < sinks
    heads = tuple(_head(own.double(), outside, first, ranks) for own in weights.cpu())
    return LowRankView(n, window, sinks, tuple(ranks), heads)


def _head(
    weights: Float[Tensor, "T T"], outside: Bool[Tensor, "T T"], first: Bool[Tensor, "1 T"], ranks: Sequence[int]
) -> HeadView:
    n = len(weights)
    mass, energy = _caught(torch.where(outside, weights, 0.0), ranks)
    mass_behind, energy_behind = _caught(torch.where(outside & ~first, weights, 0.0), ranks)
    far = float(weights[outside].sum()) / n
    return HeadView(
        inside=float(weights.sum()) / n - far,
        sinks=float(weights[outside & first].sum()) / n,
        outside=far,
        mass=mass,
        energy=energy,
        mass_behind_sinks=mass_behind,
        energy_behind_sinks=energy_behind,
    )


def _caught(correction: Float[Tensor, "T T"], ranks: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    total = float(correction.sum())
    if total == 0.0:
        return (1.0,) * len(ranks), (1.0,) * len(ranks)
    left, values, right = torch.linalg.svd(correction)
    squares = values.square()
    mass, energy = [], []
    for rank in ranks:
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        mass.append(float(torch.minimum(correction, best.clamp_min(0.0)).sum()) / total)
        energy.append(float(squares[:rank].sum() / squares.sum()))
    return tuple(mass), tuple(energy)
