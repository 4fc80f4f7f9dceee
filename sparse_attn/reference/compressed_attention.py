"""Attention over compressed blocks, query by query: the judge of what works in runs of queries."""

import torch
from jaxtyping import Float
from torch import Tensor


def coarse_attention(
    q: Float[Tensor, "T Hq D"],
    k: Float[Tensor, "blocks Hkv D"],
    v: Float[Tensor, "blocks Hkv D"],
    candidates: list[list[list[int]]],
    *,
    scale: float,
) -> tuple[Float[Tensor, "T Hq D"], Float[Tensor, "T Hkv blocks"]]:
    """Each query's softmax over its candidate blocks, in float64.

    Args:
        candidates: Block numbers for each query and KV head.

    Returns:
        The output, zeros without candidates; and each block's weight summed over the heads of a group, 0 elsewhere.
    """
    out = torch.zeros(q.shape, dtype=torch.float64)
    weights = torch.zeros(q.shape[0], k.shape[1], k.shape[0], dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for t in range(q.shape[0]):
        for h in range(q.shape[1]):
            own = candidates[t][h // group]
            if own:
                logits = scale * (k[own, h // group].double() @ q[t, h].double())
                p = torch.exp(logits - logits.logsumexp(0))
                out[t, h] = p @ v[own, h // group].double()
                weights[t, h // group, own] += p
    return out, weights
