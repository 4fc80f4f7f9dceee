"""Stripes and diagonals of attention, estimated from the last queries.

With w the exact attention of n queries at positions S - n .. S - 1:

    stripe[j] = mean over the queries i of w[i,j];   diagonal[d] = mean over i of w[i, i - d]

Both kinds are taken together, the heaviest first, until their union holds a share `coverage` of the sample's mass.

Source: Jiang et al. 2024, arXiv:2407.02490.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def sampled_attention(q: Float[Tensor, "n G D"], k: Float[Tensor, "S D"], first: int) -> Float[Tensor, "G n S"]:
    """The exact causal attention of scaled queries at positions first, first + 1, ... of one KV head, in float32."""
    logits = torch.einsum("ngd,sd->gns", q, k).float()
    i = torch.arange(first, first + q.shape[0], device=q.device)
    return logits.masked_fill_(torch.arange(k.shape[0], device=q.device) > i[:, None], float("-inf")).softmax(-1)


def stripes_and_diagonals(
    weights: Float[Tensor, "H n S"], coverage: float, covered: Bool[Tensor, "n S"] | None = None
) -> tuple[Bool[Tensor, "H S"], Bool[Tensor, "H S"]]:
    """The stripes (by key) and diagonals (by distance) that hold a share `coverage` of the weights' mass.

    Args:
        weights: Attention of the last n of S queries; 0 after the query.
        coverage: Share of the mass of all weights.
        covered: Pairs that are kept anyway: their mass counts as held and draws no stripe.

    The heaviest come first, a stripe before a diagonal and a low number before a high one where masses are equal; the
    fewest of this order are taken. NaN weighs nothing.
    Cost: O(n S log S) for each head.
    """
    heads, n, n_keys = weights.shape
    weights = weights.nan_to_num(0.0)
    wanted = coverage * weights.sum((1, 2))
    if covered is not None:
        wanted = wanted - (weights * covered).sum((1, 2))
        weights = weights.masked_fill(covered, 0.0)
    i = torch.arange(n_keys - n, n_keys, device=weights.device)
    distance = (i[:, None] - torch.arange(n_keys, device=weights.device)).clamp(min=0)
    diagonal = torch.zeros(heads, n_keys, device=weights.device)
    diagonal.scatter_add_(1, distance.flatten().expand(heads, -1), weights.flatten(1))
    mass = torch.cat([weights.sum(1), diagonal], 1)
    rank = torch.empty_like(mass, dtype=torch.long)
    order = mass.argsort(dim=1, descending=True, stable=True)
    rank.scatter_(1, order, torch.arange(2 * n_keys, device=mass.device).expand(heads, -1))

    def taken(count: Tensor) -> tuple[Tensor, Tensor]:
        chosen = (rank < count[:, None]) & (mass > 0)
        return chosen[:, :n_keys], chosen[:, n_keys:]

    low = torch.zeros(heads, dtype=torch.long, device=mass.device)
    high = (mass > 0).sum(1)
    for _ in range((2 * n_keys).bit_length()):  # the smallest count that holds enough, for all heads at once
        middle = (low + high) // 2
        stripes, diagonals = taken(middle)
        held = (weights * (stripes[:, None] | diagonals[:, distance])).sum((1, 2))
        enough = held >= wanted
        low, high = torch.where(enough, low, torch.minimum(middle + 1, high)), torch.where(enough, middle, high)
    return taken(high)


def crossed_blocks(
    stripes: Bool[Tensor, "H S"],
    diagonals: Bool[Tensor, "H S"],
    first: Tensor,
    *,
    rows: int,
    block: int,
) -> Bool[Tensor, "H tiles blocks"]:
    """The key blocks that stripes and diagonals cross in tiles of `rows` queries, which begin at positions `first`."""
    n_keys = stripes.shape[1]
    n_blocks = -(-n_keys // block)
    striped = torch.nn.functional.pad(stripes, (0, n_blocks * block - n_keys)).unflatten(1, (-1, block)).any(2)
    before = torch.nn.functional.pad(diagonals.long().cumsum(1), (1, 0))  # diagonals nearer than each distance
    start = torch.arange(n_blocks, device=stripes.device) * block
    # Distances between the tile's queries and the block's keys.
    nearest = (first[:, None] - start - block + 1).clamp(0, n_keys)
    farthest = (first[:, None] + rows - start).clamp(0, n_keys)
    return striped[:, None] | (before[:, farthest] > before[:, nearest])
