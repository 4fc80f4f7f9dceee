"""Anchors written out, row by row: the judge of the scan in all its forms."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor


def anchor_rows(
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    queries: Float[Tensor, "Hkv R D"],
    initial_logit: Float[Tensor, "Hkv R"],
    initial_k: Float[Tensor, "Hkv R D"],
    initial_v: Float[Tensor, "Hkv R D"],
    pooling: Float[Tensor, "Hkv D"] | None = None,
    *,
    block: int,
    causal: bool = True,
    cu_seqlens: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "B N R Hkv D"], Float[Tensor, "B N R Hkv D"]]:
    """Every row by a softmax of its own over the initial element and the blocks that it reads.

    Args:
        k, v: Packed sequences have B = 1.
        pooling: None: blocks' means; otherwise weights softmax(D ** -0.5 * k @ pooling) over a block's tokens.

    Returns:
        Keys and values in the inputs' dtype; float64 for float64 inputs, computed in float64 whatever they are.

    Cost: O((S / block)^2 x R) time.
    """
    wide_k, wide_v = k.double(), v.double()
    learned = tuple(x.double() for x in (queries, initial_logit, initial_k, initial_v))
    scale = k.shape[-1] ** -0.5
    bounds = [0, k.shape[1]] if cu_seqlens is None else list(cu_seqlens)
    rows_k, rows_v = [], []
    for start, stop in pairwise(bounds):
        pooled = []
        for first in range(start, stop, block):
            tokens = slice(first, min(first + block, stop))
            own_k, own_v = wide_k[:, tokens], wide_v[:, tokens]
            if pooling is None:
                weights = torch.full_like(own_k[..., :1], 1 / own_k.shape[1])
            else:
                weights = torch.softmax(torch.einsum("bthd,hd->bth", own_k, pooling.double()) * scale, 1)[..., None]
            pooled.append(((weights * own_k).sum(1), (weights * own_v).sum(1)))
        for n in range(len(pooled)):
            read = pooled[:n] if causal else pooled
            one = _row([p[0] for p in read], [p[1] for p in read], learned, scale, k.shape[0])
            rows_k.append(one[0])
            rows_v.append(one[1])
    if not rows_k:
        empty = k.new_empty(k.shape[0], 0, queries.shape[1], *k.shape[2:])
        return empty, empty
    return torch.stack(rows_k, 1).to(k.dtype), torch.stack(rows_v, 1).to(v.dtype)


def _row(
    keys: list[Tensor],
    values: list[Tensor],
    learned: tuple[Tensor, ...],
    scale: float,
    batch: int,
) -> tuple[Float[Tensor, "B R Hkv D"], Float[Tensor, "B R Hkv D"]]:
    queries, initial_logit, initial_k, initial_v = learned
    first = initial_logit.expand(batch, -1, -1)
    logits = [first, *(scale * torch.einsum("hrd,bhd->bhr", queries, own) for own in keys)]
    weights = torch.softmax(torch.stack(logits), 0)
    sums = []
    for initial, elements in ((initial_k, keys), (initial_v, values)):
        row = weights[0][..., None] * initial
        for weight, element in zip(weights[1:], elements, strict=True):
            row = row + weight[..., None] * element[:, :, None]
        sums.append(row.transpose(1, 2))
    return sums[0], sums[1]
