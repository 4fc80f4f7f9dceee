"""Anchor trees by recursion, node by node: the judge of the gathered form."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor


def tree_rows(
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    queries: Float[Tensor, "levels Hkv R D"],
    null_k: Float[Tensor, "levels R Hkv D"],
    null_v: Float[Tensor, "levels R Hkv D"],
    *,
    fanout: int,
    block: int,
    cu_seqlens: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "B N E Hkv D"], Float[Tensor, "B N E Hkv D"]]:
    """Every row by asking, from the nearest block back, for the coarsest node that may stand there.

    A level shows nodes until what is left before them is a whole number of coarser nodes and at least one node was shown;
    the coarsest level shows its last `fanout`. Computed in float64, returned in the inputs' dtype.
    """
    wide = [x.double() for x in (k, v, queries, null_k, null_v)]
    levels = queries.shape[0]
    bounds = [0, k.shape[1]] if cu_seqlens is None else list(cu_seqlens)
    rows: list[tuple[Tensor, Tensor]] = []
    for start, stop in pairwise(bounds):
        for n in range(-(-(stop - start) // block)):
            found: list[tuple[Tensor, Tensor]] = []
            left = n  # blocks that are not told of yet
            for level in range(levels):
                size = fanout**level
                shown: list[tuple[Tensor, Tensor]] = []
                while left > 0 and (not shown or left % (size * fanout) or level == levels - 1) and len(shown) < fanout:
                    left -= size
                    shown.insert(0, _node(wide, level, left, fanout, block, start))
                nulls = (wide[3][level].expand(k.shape[0], -1, -1, -1), wide[4][level].expand(k.shape[0], -1, -1, -1))
                found += shown + [nulls] * (fanout - len(shown))
            rows.append((torch.cat([f[0] for f in found], 1), torch.cat([f[1] for f in found], 1)))
    return torch.stack([row[0] for row in rows], 1).to(k.dtype), torch.stack([row[1] for row in rows], 1).to(v.dtype)


def _node(wide: list[Tensor], level: int, first: int, fanout: int, block: int, start: int) -> tuple[Tensor, Tensor]:
    """The summaries of fanout ** level blocks from block `first` on, ``[B, R, Hkv, D]``."""
    k, v, queries = wide[:3]
    if level == 0:
        tokens = slice(start + first * block, start + first * block + block)
        own_k, own_v = k[:, tokens], v[:, tokens]
    else:
        below = [
            _node(wide, level - 1, first + nth * fanout ** (level - 1), fanout, block, start) for nth in range(fanout)
        ]
        own_k, own_v = torch.cat([b[0] for b in below], 1), torch.cat([b[1] for b in below], 1)
    logits = torch.einsum("hrd,bghd->brhg", queries[level], own_k) * k.shape[-1] ** -0.5
    shares = torch.softmax(logits, -1)
    return torch.einsum("brhg,bghd->brhd", shares, own_k), torch.einsum("brhg,bghd->brhd", shares, own_v)
