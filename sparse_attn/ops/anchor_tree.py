"""Anchor trees: summaries of blocks, and summaries of summaries; each query sees fine ones near and coarse ones far."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..patterns import AnchorTree
from .anchors import Lengths, _bounds, _check_keys


class TreeWeights(NamedTuple):
    """What is learned of an anchor tree.

    Attributes:
        queries: ``[levels, Hkv, R, D]``: each level's r queries, which read a block's tokens at level 0, and the summaries of
            `fanout` nodes above it.
        null_k, null_v: ``[levels, R, Hkv, D]``, what stands where a level has no node to show: a query that sees less sees a
            learned constant instead, so that every row has the same number of keys and none needs a mask.
    """

    queries: Tensor
    null_k: Tensor
    null_v: Tensor


def tree_keys(
    k: Float[Tensor, "*B S Hkv D"],
    v: Float[Tensor, "*B S Hkv D"],
    weights: TreeWeights,
    tree: AnchorTree,
    *,
    cu_seqlens: Lengths | None = None,
) -> tuple[Float[Tensor, "*B N E Hkv D"], Float[Tensor, "*B N E Hkv D"]]:
    """The extra keys and values of an `AnchorTree` term.

    node[0,j] = read(queries[0], tokens of block j);  node[l,j] = read(queries[l], node[l-1, f j .. f j + f - 1])
    read(w, x) = sum_i softmax_i(D ** -0.5 * w[h,r] @ k[i,h]) x[i,h], with the same weights for x = k and v
    row n = the nodes that ``tree.shown(n)`` names, level by level, oldest first, and null keys up to `fanout` a level

    Args:
        k, v: Keys before any rotary embedding, and values: ``[B, S, Hkv, D]``, packed ``[S, Hkv, D]`` with `cu_seqlens`.
        weights: What is learned.
        tree: The term.
        cu_seqlens: Document boundaries; every document has a tree of its own.

    Returns:
        ``[B, ceil(S / block), levels * fanout * r, Hkv, D]`` in k's dtype, as `attention` takes them. Row n is made of blocks
        before block n alone; a last block that is not complete is in no row.

    Raises:
        ValueError: shapes that disagree.

    Differentiable, in plain PyTorch on any device. Cost: O(S x R x Hkv x D) for the nodes, and N x levels x fanout x R keys
    gathered.
    Source: Zhu and Soricut 2021, arXiv:2107.11906 (hierarchical summaries in one softmax, there by fixed means).
    """
    _check_keys(k, v, tree.block)
    shape = (tree.levels, k.shape[-2], tree.r, k.shape[-1])
    if tuple(weights.queries.shape) != shape:
        raise ValueError(f"queries must have shape {shape} (levels, Hkv, R, D), got {tuple(weights.queries.shape)}")
    packed = cu_seqlens is not None
    whole_k, whole_v = (
        (x.reshape(1 if packed else -1, *x.shape[-3:]) for x in (k, v)) if k.numel() else (k[None], v[None])
    )
    parts = [
        _document(whole_k[:, start:stop], whole_v[:, start:stop], weights, tree)
        for start, stop in pairwise(_bounds(cu_seqlens, k.shape[-3]))
        if stop > start
    ]
    if not parts:
        empty = k.new_empty(*k.shape[:-3], 0, tree.extra_keys, *k.shape[-2:])
        return empty, empty
    rows_k, rows_v = (torch.cat(own, 1) for own in zip(*parts, strict=True))
    lead = k.shape[:-3]
    return rows_k.reshape(*lead, *rows_k.shape[1:]), rows_v.reshape(*lead, *rows_v.shape[1:])


def summarise(
    queries: Float[Tensor, "Hkv R D"], k: Float[Tensor, "B M G Hkv D"], v: Float[Tensor, "B M G Hkv D"]
) -> tuple[Float[Tensor, "B M R Hkv D"], Float[Tensor, "B M R Hkv D"]]:
    """Each of M groups of G keys and values read by R queries; see `tree_keys`."""
    wide_k, wide_v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
    logits = torch.einsum("hrd,bmghd->bmhrg", queries.to(wide_k.dtype) * k.shape[-1] ** -0.5, wide_k)
    shares = logits.softmax(-1)
    found = (torch.einsum("bmhrg,bmghd->bmrhd", shares, x) for x in (wide_k, wide_v))
    made_k, made_v = (x.to(k.dtype) for x in found)
    return made_k, made_v


def _document(k: Tensor, v: Tensor, weights: TreeWeights, tree: AnchorTree) -> tuple[Tensor, Tensor]:
    n_rows = -(-k.shape[1] // tree.block)
    whole = k.shape[1] // tree.block * tree.block
    own_k, own_v = (x[:, :whole].unflatten(1, (-1, tree.block)) for x in (k, v))
    nodes: list[tuple[Tensor, Tensor]] = []
    firsts, count = [], 0  # where each level's nodes begin
    for level in range(tree.levels):
        made = summarise(weights.queries[level], own_k, own_v)
        nodes.append(made)
        firsts.append(count)
        count += made[0].shape[1]
        complete = made[0].shape[1] // tree.fanout * tree.fanout
        own_k, own_v = (x[:, :complete].unflatten(1, (-1, tree.fanout)).flatten(2, 3) for x in made)
    table = [
        [firsts[level] + node for node in shown] + [count + level] * (tree.fanout - len(shown))
        for n in range(n_rows)
        for level, shown in enumerate(tree.shown(n))
    ]
    chosen = torch.tensor(table, dtype=torch.long, device=k.device).flatten()
    rows = []
    for side, null in enumerate((weights.null_k, weights.null_v)):
        beside = null.to(k.dtype)[None].expand(k.shape[0], -1, -1, -1, -1)
        every = torch.cat([*(made[side] for made in nodes), beside], 1)
        # Indexed, not index_select: its gradient adds up in a fixed order on every device.
        rows.append(every[:, chosen].unflatten(1, (n_rows, tree.levels * tree.fanout)).flatten(2, 3))
    return rows[0], rows[1]
