"""Attention to keys that hash to the query's bucket, by gathers from an order of keys by bucket and position."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..patterns import Chunked, Full, Hashed, Pattern, Sinks, Strided, Window
from ..patterns.documents import Document, split_documents
from ..patterns.hashed import Rest, split_hashed
from ..patterns.pattern import Within

GATHERED = 1 << 21  # numbers of keys gathered at once, 8 MiB in float32, and as many of values

_BY_OPERATORS = (Window, Chunked, Full, Sinks, Strided)  # their rules are arithmetic that tensors know too


def hash_buckets(x: Float[Tensor, "*B T H D"], term: Hashed, kv_heads: int) -> Int[Tensor, "rounds *B T H"]:
    """The bucket of each query or key in each round: the nearest of random directions and their opposites.

    bucket = argmax of [x R, -x R],  R[round, KV head]: D x buckets / 2 standard normal numbers (float32, PyTorch's CPU
    generator started from the term's seed; one draw of shape [rounds, Hkv, D, buckets / 2])

    x and a positive multiple of x have the same bucket. Of equal values the first counts. No gradient passes.
    Source: Kitaev et al. 2020, arXiv:2001.04451 (angular LSH after Andoni et al. 2015, arXiv:1509.02897).
    """
    generator = torch.Generator().manual_seed(term.seed)
    directions = torch.randn(term.rounds, kv_heads, x.shape[-1], term.buckets // 2, generator=generator)
    grouped = x.detach().to(torch.promote_types(x.dtype, torch.float32)).unflatten(-2, (kv_heads, -1))
    found = []
    with torch.autocast(x.device.type, enabled=False):  # the same buckets inside autocast as outside
        for own in directions.to(x.device, grouped.dtype):
            near = torch.einsum("...hgd,hdn->...hgn", grouped, own)
            found.append(torch.cat([near, -near], -1).argmax(-1).flatten(-2))
    return torch.stack(found)


def hashed_attention(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    patterns: Sequence[Pattern],
    *,
    scale: float,
    cu_seqlens_q: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "B T Hq D"], Float[Tensor, "B T Hq"]]:
    """Causal softmax attention over the keys of a pattern's `Hashed` term that no static term names.

    In round r, query i of bucket b sees the keys j <= i of bucket b whose rank (how many earlier keys of b there are)
    lies in its chunk or the one before: rank // chunk >= n // chunk - 1, n the rank of the last such key. Rounds are
    united: a key seen in several counts once. Nothing of a later token enters: neither its hash nor its place.

    Args:
        patterns: One pattern for all KV heads, or one for each; all with the same `Hashed` term. Query heads hash for
            themselves, in the directions of their KV head.

    Returns:
        The output in q's dtype, and the natural-log LSE in float32 (float64 inputs: float64): 0 and -inf without keys.

    Gradients flow to q, k and v from both, through recomputation; on CPU and GPU they repeat to the bit.
    Cost: O(S log S) for each head and round to sort, O(T x Hq x rounds x 2 chunk x D) to gather and attend, by plain
    torch; memory: inputs, orders, and what is gathered at once. A single query still sorts all keys.
    """
    documents = split_documents(q.shape[1], k.shape[1], cu_seqlens_q, cu_seqlens_k)
    packed = cu_seqlens_q is not None
    (first, *_) = rests = [split_hashed(pattern) for pattern in patterns]
    assert first is not None
    q_buckets, k_buckets = (hash_buckets(x, first.term, k.shape[2]) for x in (q, k))
    outs, lses = [q[:, :0]], [q[:, :0, :, 0].to(torch.promote_types(q.dtype, torch.float32))]
    for index, document in enumerate(documents):
        own_q, own_k = slice(document.q_start, document.q_stop), slice(document.k_start, document.k_stop)
        if not document.n_queries:
            continue
        order = _order(k_buckets[:, :, own_k].movedim(3, 2), first.term.buckets)
        rules = [
            split_hashed(pattern.example(index)) if packed else rest
            for pattern, rest in zip(patterns, rests, strict=True)
        ]
        width = first.term.rounds * 2 * first.term.chunk
        step = max(1, GATHERED // (q.shape[0] * q.shape[2] * width * q.shape[3]))
        for start in range(0, document.n_queries, step):
            some = slice(start, min(start + step, document.n_queries))
            at = slice(own_q.start + some.start, own_q.start + some.stop)
            inputs = (
                q[:, at],
                k[:, own_k],
                v[:, own_k],
                q_buckets[:, :, at].movedim(3, 2),
                order,
                document,
                some,
                rules,
                scale,
            )
            if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
                out, lse = checkpoint(_attend, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                out, lse = _attend(*inputs)
            outs.append(out)
            lses.append(lse)
    return torch.cat(outs, 1), torch.cat(lses, 1)


class Order(NamedTuple):
    """A document's keys sorted by bucket, then by position; by round, example and KV head, ``[rounds, B, Hkv, ...]``."""

    buckets: Int[Tensor, "rounds B Hkv S"]  # of the keys, unsorted
    ranks: Int[Tensor, "rounds B Hkv S"]  # how many earlier keys a key's bucket has, unsorted
    keys: Int[Tensor, "rounds B Hkv S"]  # positions in the sorted order
    places: Int[Tensor, "rounds B Hkv S"]  # bucket * S + position, ascending
    starts: Int[Tensor, "rounds B Hkv buckets"]  # where each bucket begins


def _order(buckets: Int[Tensor, "rounds B Hkv S"], n_buckets: int) -> Order:
    n_keys = buckets.shape[-1]
    position = torch.arange(n_keys, device=buckets.device)
    places, keys = (buckets.contiguous() * n_keys + position).sort(-1)
    first = (torch.arange(n_buckets, device=buckets.device) * n_keys).expand(*buckets.shape[:-1], -1)
    starts = torch.searchsorted(places, first.contiguous())
    ranks = torch.empty_like(keys).scatter_(-1, keys, position.expand_as(keys)) - starts.gather(-1, buckets)
    return Order(buckets, ranks, keys, places, starts)


def _attend(
    q: Float[Tensor, "B n Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    q_buckets: Int[Tensor, "rounds B Hq n"],
    order: Order,
    document: Document,
    some: slice,
    rests: Sequence[Rest | None],
    scale: float,
) -> tuple[Float[Tensor, "B n Hq D"], Float[Tensor, "B n Hq"]]:
    """Some of a document's queries."""
    wide = torch.promote_types(q.dtype, torch.float32)
    i = document.first_position + torch.arange(some.start, some.stop, device=q.device)
    keys, keep = _seen(q_buckets, order, i, rests)
    batch = torch.arange(q.shape[0], device=q.device)[:, None, None, None]
    head = (torch.arange(q.shape[2], device=q.device) * k.shape[2] // q.shape[2])[:, None, None]
    # Indexing, whose gradient adds up in a fixed order on every device; index_select's would not on a GPU.
    own_k, own_v = (x[batch, keys, head].to(wide) for x in (k, v))
    empty = ~keep.any(-1, keepdim=True)
    with torch.autocast(q.device.type, enabled=False):  # sums are held in float32 inside autocast too
        logits = (own_k @ (q.to(wide) * scale).transpose(1, 2)[..., None])[..., 0]  # [B, Hq, n, keys]
        # A row with no keys gets logits 0 for the moment, so that neither it nor its gradient turns into NaN.
        logits = logits.masked_fill(~keep, -math.inf).masked_fill(empty, 0.0)
        out = (logits.softmax(-1)[:, :, :, None] @ own_v)[:, :, :, 0].masked_fill(empty, 0.0)
    lse = logits.logsumexp(-1).masked_fill(empty[..., 0], -math.inf)
    return out.transpose(1, 2).to(q.dtype), lse.transpose(1, 2)


def _seen(
    q_buckets: Int[Tensor, "rounds B Hq n"], order: Order, i: Int[Tensor, " n"], rests: Sequence[Rest | None]
) -> tuple[Int[Tensor, "B Hq n keys"], Bool[Tensor, "B Hq n keys"]]:
    """Positions of the keys that each query may see, all rounds beside each other, and which of them count."""
    (rest, *_) = rests
    assert rest is not None
    term, n_keys = rest.term, order.keys.shape[-1]
    group = q_buckets.shape[2] // order.keys.shape[2]
    wide = Order(*(part.repeat_interleave(group, 2) for part in order))  # one for each query head
    start = wide.starts.gather(-1, q_buckets)
    count = torch.searchsorted(wide.places, (q_buckets * n_keys + i).contiguous(), right=True) - start  # keys up to i
    lowest = ((count - 1) // term.chunk - 1).clamp(min=0) * term.chunk  # rank from which on keys are seen
    rank = lowest[..., None] + torch.arange(2 * term.chunk, device=i.device)
    at = (start[..., None] + rank).clamp(max=n_keys - 1).flatten(-2)
    keys = wide.keys.gather(-1, at).unflatten(-1, rank.shape[-2:])
    keep = rank < count[..., None]
    for later in range(1, term.rounds):
        flat = keys[later].flatten(-2)
        for earlier in range(later):
            bucket, old_rank = (x[earlier].gather(-1, flat).view_as(keys[later]) for x in (wide.buckets, wide.ranks))
            again = (bucket == q_buckets[earlier][..., None]) & (old_rank >= lowest[earlier][..., None])
            keep[later] &= ~again
    keys, keep = (x.movedim(0, 3).flatten(3) for x in (keys, keep))
    per_pattern = keys.shape[1] // len(rests)
    for number, own in enumerate(rests):
        assert own is not None
        heads = slice(number * per_pattern, (number + 1) * per_pattern)
        keep[:, heads] &= _not_named(own, i[:, None], keys[:, heads], n_keys)
    return keys, keep


def _not_named(
    rest: Rest, i: Int[Tensor, "n 1"], j: Int[Tensor, "B H n keys"], n_keys: int
) -> Bool[Tensor, "B H n keys"]:
    """Keys inside the term's cut that no static term keeps."""
    keep = torch.ones_like(j, dtype=torch.bool)
    if rest.limit is not None:
        keep &= _rule(rest.limit, i, j, n_keys)
    for clause in () if rest.static is None else rest.static.terms:
        keep &= ~_rule(clause, i, j, n_keys)
    return keep


def _rule(clause: Pattern, i: Tensor, j: Tensor, n_keys: int) -> Tensor:
    parts = (clause.term, clause.limit) if isinstance(clause, Within) else (clause,)
    if all(isinstance(part, _BY_OPERATORS) for part in parts):
        return clause.keeps(i, j, n_keys, True)  # type: ignore[attr-defined, no-any-return]
    named = clause.keeps(i.cpu().numpy()[None, None], j.cpu().numpy(), n_keys, True)  # type: ignore[attr-defined]
    return torch.from_numpy(named).to(j.device)
