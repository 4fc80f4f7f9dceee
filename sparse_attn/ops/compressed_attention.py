"""Attention over one compressed key for each block, whose scores also choose the blocks that are read in full."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..patterns import Pattern, TopBlocks
from ..patterns.documents import Document, split_documents
from .check_attention import check_patterns
from .check_selected import same_choice
from .select_blocks import best_blocks, candidate_blocks, static_interval

LOGITS = 1 << 23  # logits that are held at once: 32 MiB in float32


def compressed_attention(
    q: Float[Tensor, "*B T Hq D"],
    k: Float[Tensor, "*B blocks Hkv D"],
    v: Float[Tensor, "*B blocks Hkv D"],
    pattern: Pattern | Sequence[Pattern],
    *,
    n_keys: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    cu_seqlens_q: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "*B T Hq D"], Int[Tensor, "*B N Hkv K"]]:
    """A coarse look at all blocks, and the blocks at which it looked most.

    p[i,h,b] = softmax over i's candidate blocks b of  scale * q[i,h] @ k[b,g];   out[i,h] = sum_b p[i,h,b] v[b,g]
    selected[n,g] = the blocks with the largest  sum over heads h of group g, queries i of tile n:  p[i,h,b]

    Candidates, ties and fewer candidates than k are as `select_blocks` says. Added to the exact attention by a gate,
    `out` carries gradients to q, k, v and to whatever compresses the keys, and so trains the scores that choose.

    Args:
        q: Queries ``[B, T, Hq, D]``, packed ``[T, Hq, D]`` with `cu_seqlens_q`.
        k, v: One key and value for each block, ceil(S / block) of them, a document's after those of the one before; see
            `pool_blocks`.
        pattern: With one `TopBlocks` term; or one per KV head, all with the same one.
        n_keys: S; None: T, or the end of `cu_seqlens_k`.
        causal, scale, cu_seqlens_q, cu_seqlens_k: As for `attention`.

    Returns:
        out in q's dtype, 0 where a query has no candidate; and the chosen blocks, int32, K = min(k, ceil(S / block)).

    Raises:
        ValueError: no `TopBlocks` term, or shapes that do not fit.
        NotImplementedError: rows > 1 where gradients are wanted: a tile's choice reads its later queries.

    Gradients flow to q, k and v from `out`. Cost: 4 * Hq * D * T * S / block multiply-adds (causal: half) in float32 by
    plain torch, twice that and more backward, where logits are made again; memory: 8M logits at a time.
    Source: Yuan et al. 2025, arXiv:2502.11089 (compressed branch and selection from its scores).

    >>> from sparse_attn.ops import pool_blocks
    >>> pattern = Window(64) | TopBlocks(2, block=32)
    >>> coarse, selected = compressed_attention(q, *pool_blocks(k, v, 32), pattern)
    >>> out = attention(q, k, v, pattern, selected=selected) + 0.5 * coarse
    """
    packed = cu_seqlens_q is not None
    if packed:
        q, k, v = q[None], k[None], v[None]
    patterns = check_patterns(pattern, n_kv_heads=k.shape[2])
    choice = same_choice(patterns)
    term = choice.term
    if not isinstance(term, TopBlocks):
        raise ValueError(f"pattern must have a TopBlocks term, whose blocks compressed keys rank, got {term!r}")
    if n_keys is None and cu_seqlens_k is None:
        n_keys = q.shape[1]
    documents = split_documents(q.shape[1], n_keys, cu_seqlens_q, cu_seqlens_k)
    _check_blocks(q, k, v, sum(-(-document.n_keys // term.block) for document in documents))
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if term.rows > 1 and needs_gradient:
        raise NotImplementedError(
            f"compressed_attention: {term!r} chooses with later queries of its tile, which training must not read: use rows=1"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    intervals = [static_interval(own, causal) for own in patterns]
    width = min(term.k, -(-(documents[-1].k_stop if documents else 0) // term.block))
    outs, chosen, first_block = [q[:, :0]], [], 0
    for document in documents:
        n_blocks = -(-document.n_keys // term.block)
        own_k, own_v = (x[:, first_block : first_block + n_blocks] for x in (k, v))
        first_block += n_blocks
        for part, queries in _runs(document, term.rows, q.shape[0] * q.shape[2] * n_blocks):
            seen = (
                min(n_blocks, max(1, _position(document, term.rows, part.stop) // term.block)) if causal else n_blocks
            )
            allowed = torch.stack(
                [candidate_blocks(choice, own, document, part, causal=causal, device=q.device) for own in intervals]
            )[:, :, :seen]
            begin = queries.start - document.q_start + document.first_position  # position of the first of these queries
            at = torch.arange(begin, begin + queries.stop - queries.start, device=q.device)
            tile = at // term.rows - document.first_position // term.rows - part.start
            inputs = q[:, queries], own_k[:, :seen], own_v[:, :seen], allowed[:, tile], scale
            if needs_gradient:
                out, weight = checkpoint(_look, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                out, weight = _look(*inputs)
            outs.append(out)
            before, after = begin % term.rows, -(begin + len(at)) % term.rows
            scores = torch.nn.functional.pad(weight, (0, 0, before, after)).unflatten(2, (-1, term.rows)).sum(3)
            heads = allowed.repeat_interleave(k.shape[2] // len(intervals), 0)
            chosen.append(best_blocks(scores, heads, width).transpose(1, 2))
    out = torch.cat(outs, 1)
    selected = torch.cat(chosen, 1) if chosen else q.new_zeros(q.shape[0], 0, k.shape[2], width, dtype=torch.int32)
    return (out[0], selected[0]) if packed else (out, selected)


def _look(
    q: Float[Tensor, "B n Hq D"],
    k: Float[Tensor, "B blocks Hkv D"],
    v: Float[Tensor, "B blocks Hkv D"],
    allowed: Bool[Tensor, "patterns n blocks"],
    scale: float,
) -> tuple[Float[Tensor, "B n Hq D"], Float[Tensor, "B Hkv n blocks"]]:
    """Attention of some queries over the blocks allowed to them, and its weights summed over each group, detached."""
    with torch.autocast(q.device.type, enabled=False):  # weights that choose are float32 inside autocast too
        return _look_wide(q, k, v, allowed, scale)


def _look_wide(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    hkv = k.shape[2]
    queries, keys, values = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
    grouped = queries.unflatten(2, (hkv, -1)).permute(0, 2, 3, 1, 4)  # [B, Hkv, G, n, D]
    logits = (grouped * scale) @ keys.permute(0, 2, 3, 1)[:, :, None]
    keep = allowed.repeat_interleave(hkv // allowed.shape[0], 0)[:, None]
    empty = ~keep.any(-1, keepdim=True)
    # A row without blocks gets logits 0 for the moment, so that neither it nor its gradient turns into NaN.
    logits = logits.masked_fill(~keep, float("-inf")).masked_fill(empty, 0.0)
    weights = logits.softmax(-1).masked_fill(~keep, 0.0)
    out = (weights @ values.permute(0, 2, 1, 3)[:, :, None]).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return out.to(q.dtype), weights.detach().sum(2)


def _runs(document: Document, rows: int, logits_of_a_query: int) -> list[tuple[slice, slice]]:
    """A document's tiles, some at a time, and the queries that stand in them."""
    first, last = document.first_position // rows, (document.n_keys - 1) // rows
    if not document.n_queries:
        return []
    step = max(1, LOGITS // max(logits_of_a_query * rows, 1))
    cuts = [*range(0, last - first + 1, step), last - first + 1]
    found = []
    for start, stop in pairwise(cuts):
        begin, end = (_position(document, rows, tile) for tile in (start, stop))
        shift = document.q_start - document.first_position
        queries = slice(max(begin, document.first_position) + shift, min(end, document.n_keys) + shift)
        found.append((slice(start, stop), queries))
    return found


def _position(document: Document, rows: int, tile: int) -> int:
    """Where a tile begins, counted from the first query's."""
    return (document.first_position // rows + tile) * rows


def _check_blocks(q: Tensor, k: Tensor, v: Tensor, n_blocks: int) -> None:
    if v.shape != k.shape:
        raise ValueError(f"v must have k's shape {tuple(k.shape)}, got {tuple(v.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[1] != n_blocks or k.shape[3] != q.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"k must have one key for each of {n_blocks} blocks, ([B,] blocks, Hkv, D) to fit q {tuple(q.shape)}, got "
            f"{tuple(k.shape)}"
        )
