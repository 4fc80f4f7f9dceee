"""Anchor trees: summaries of blocks, and summaries of summaries; each query sees fine ones near and coarse ones far."""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..patterns import AnchorTree
from .anchors import check_keys
from .boundaries import Lengths, document_bounds


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
        ValueError: shapes that disagree with each other or with the term, or boundaries that do not fit.

    Sums are float32 (float64 inputs: float64) inside autocast too.
    Differentiable, in plain PyTorch on any device. Cost: O(S x R x Hkv x D) for the nodes, and N x levels x fanout x R keys
    gathered.
    Source: Zhu and Soricut 2021, arXiv:2107.11906 (hierarchical summaries in one softmax, there by fixed means).
    """
    check_keys(k, v, tree.block)
    check_weights(weights, tree, k)
    packed = cu_seqlens is not None
    whole_k, whole_v = (
        (x.reshape(1 if packed else -1, *x.shape[-3:]) for x in (k, v)) if k.numel() else (k[None], v[None])
    )
    parts = [
        _document(whole_k[:, start:stop], whole_v[:, start:stop], weights, tree)
        for start, stop in pairwise(document_bounds(cu_seqlens, k.shape[-3]))
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
    with torch.autocast(k.device.type, enabled=False):  # einsum would narrow them again
        logits = torch.einsum("hrd,bmghd->bmhrg", queries.to(wide_k.dtype) * k.shape[-1] ** -0.5, wide_k)
        shares = logits.softmax(-1)
        made_k, made_v = (torch.einsum("bmhrg,bmghd->bmrhd", shares, x) for x in (wide_k, wide_v))
    return made_k.to(k.dtype), made_v.to(v.dtype)


def check_weights(weights: TreeWeights, tree: AnchorTree, k: Tensor) -> None:
    """Refuse weights that do not fit the term and the keys.

    Raises:
        ValueError: names the weight, its shape and what was expected.
    """
    heads, d = k.shape[-2:]
    for name, shape, axes in (
        ("queries", (tree.levels, heads, tree.r, d), "levels, Hkv, R, D"),
        ("null_k", (tree.levels, tree.r, heads, d), "levels, R, Hkv, D"),
        ("null_v", (tree.levels, tree.r, heads, d), "levels, R, Hkv, D"),
    ):
        weight = getattr(weights, name, None)
        if not isinstance(weight, Tensor) or tuple(weight.shape) != shape or weight.device != k.device:
            got = f"{tuple(weight.shape)} on {weight.device}" if isinstance(weight, Tensor) else repr(weight)
            raise ValueError(
                f"{name} must have shape {shape} ({axes}) on k's device {k.device} for {tree!r}, got {got}"
            )


def _document(k: Tensor, v: Tensor, weights: TreeWeights, tree: AnchorTree) -> tuple[Tensor, Tensor]:
    n_rows = -(-k.shape[1] // tree.block)
    whole = k.shape[1] // tree.block * tree.block
    own_k, own_v = (x[:, :whole].unflatten(1, (-1, tree.block)) for x in (k, v))
    nodes: list[tuple[Tensor, Tensor]] = []
    for level in range(tree.levels):
        made = summarise(weights.queries[level], own_k, own_v)
        nodes.append(made)
        complete = made[0].shape[1] // tree.fanout * tree.fanout
        own_k, own_v = (x[:, :complete].unflatten(1, (-1, tree.fanout)).flatten(2, 3) for x in made)
    table = _table if torch.compiler.is_compiling() else _kept_table
    chosen = table(tree, k.shape[1], k.device)
    rows = []
    for side, null in enumerate((weights.null_k, weights.null_v)):
        beside = null.to(k.dtype)[None].expand(k.shape[0], -1, -1, -1, -1)
        every = torch.cat([*(made[side] for made in nodes), beside], 1)
        # Indexed, not index_select: its gradient adds up in a fixed order on every device.
        rows.append(every[:, chosen].unflatten(1, (n_rows, tree.levels * tree.fanout)).flatten(2, 3))
    return rows[0], rows[1]


@lru_cache(maxsize=64)  # the layers of a model ask for the same few; a copy to the device waits for it
def _kept_table(tree: AnchorTree, n_keys: int, device: torch.device) -> Int[Tensor, " slots"]:
    with torch.inference_mode(False):  # kept for calls that are differentiated, too
        return _table(tree, n_keys, device)


def _table(tree: AnchorTree, n_keys: int, device: torch.device) -> Int[Tensor, " slots"]:
    """Which node stands in each slot of each row, counted level by level; the null keys stand after all nodes."""
    made = [n_keys // tree.block]
    for _ in range(1, tree.levels):
        made.append(made[-1] // tree.fanout)
    firsts, count = [sum(made[:level]) for level in range(tree.levels)], sum(made)
    table = [
        [firsts[level] + node for node in shown] + [count + level] * (tree.fanout - len(shown))
        for n in range(-(-n_keys // tree.block))
        for level, shown in enumerate(tree.shown(n))
    ]
    return torch.tensor(table, dtype=torch.long, device=device).flatten()
