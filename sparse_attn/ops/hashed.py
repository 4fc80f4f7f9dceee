"""Attention to keys that hash to the query's bucket, in tiles of queries that read the same chunks of it."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..patterns import Chunked, Full, Hashed, Pattern, Sinks, Strided, Window
from ..patterns.documents import split_documents
from ..patterns.hashed import Rest, split_hashed
from ..patterns.pattern import Within
from .hash_tiles import Order, Reach, Tiles, kept, key_order, reach_of, tiles_of
from .merge import merge

# Numbers of tiles, keys and values held at once: 8 MiB in float32; on a GPU 128 times that, to fill it.
GATHERED = 1 << 21

_BY_TILE = ("queries", "filled", "lowest", "keys")
_BY_OPERATORS = (Window, Chunked, Full, Sinks, Strided)  # their rules are arithmetic that tensors know too


def hash_buckets(x: Float[Tensor, "*B T H D"], term: Hashed, kv_heads: int) -> Int[Tensor, "rounds *B T H"]:
    """The bucket of each query or key in each round: the nearest of random directions and their opposites.

    bucket = argmax of [x R, -x R],  R[round, KV head]: D x buckets / 2 standard normal numbers (float32, PyTorch's CPU
    generator started from the term's seed; one draw of shape [rounds, Hkv, D, buckets / 2])

    x and a positive multiple of x have the same bucket. Of equal values the first counts. No gradient passes.
    Source: Kitaev et al. 2020, arXiv:2001.04451 (angular LSH after Andoni et al. 2015, arXiv:1509.02897).
    """
    draw = _directions if torch.compiler.is_compiling() else _kept_directions
    grouped = x.detach().to(torch.promote_types(x.dtype, torch.float32)).unflatten(-2, (kv_heads, -1))
    found = []
    with torch.autocast(x.device.type, enabled=False):  # the same buckets inside autocast as outside
        for own in draw(term, kv_heads, x.shape[-1], x.device).to(grouped.dtype):
            near = torch.einsum("...hgd,hdn->...hgn", grouped, own)
            found.append(torch.cat([near, -near], -1).argmax(-1).flatten(-2))
    return torch.stack(found)


@lru_cache(maxsize=64)  # the layers of a model ask for the same few; a copy to the device waits for it
def _kept_directions(term: Hashed, kv_heads: int, dim: int, device: torch.device) -> Float[Tensor, "rounds Hkv D half"]:
    with torch.inference_mode(False):  # kept for calls that are differentiated, too
        return _directions(term, kv_heads, dim, device)


def _directions(term: Hashed, kv_heads: int, dim: int, device: torch.device) -> Float[Tensor, "rounds Hkv D half"]:
    generator = torch.Generator().manual_seed(term.seed)
    return torch.randn(term.rounds, kv_heads, dim, term.buckets // 2, generator=generator).to(device)


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
    Cost: O(S log S) for each head and round to sort, 4 x 2 chunk x D FLOPs for each query, head and round to attend, as dense
    tiles of `chunk` queries that read the same keys (`hash_tiles`), by plain torch; a bucket's last tile may be mostly empty.
    Memory: a round's output in float32, orders, and what is gathered at once. A single query still sorts all keys. On a GPU
    nothing waits for the device unless `Dilated`, `Global` or `Random` stands beside: a call can be captured into a CUDA graph.
    """
    documents = split_documents(q.shape[1], k.shape[1], cu_seqlens_q, cu_seqlens_k)
    packed = cu_seqlens_q is not None
    (first, *_) = rests = [split_hashed(pattern) for pattern in patterns]
    assert first is not None
    wide = torch.promote_types(q.dtype, torch.float32)
    q_buckets, k_buckets = (hash_buckets(x, first.term, k.shape[2]).movedim(3, 2) for x in (q, k))
    outs, lses = [q[:, :0].to(wide)], [q[:, :0, :, 0].to(wide)]
    for index, document in enumerate(documents):
        if not document.n_queries:
            continue
        rules = [
            split_hashed(pattern.example(index)) if packed else rest
            for pattern, rest in zip(patterns, rests, strict=True)
        ]
        own_q, own_k = slice(document.q_start, document.q_stop), slice(document.k_start, document.k_stop)
        inputs = (q[:, own_q].to(wide) * scale, k[:, own_k].to(wide), v[:, own_k].to(wide))
        out, lse = _document(*inputs, q_buckets[..., own_q], k_buckets[..., own_k], document.first_position, rules)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, 1).to(q.dtype), torch.cat(lses, 1)


def _document(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    q_buckets: Int[Tensor, "rounds B Hq T"],
    k_buckets: Int[Tensor, "rounds B Hkv S"],
    first_position: int,
    rests: Sequence[Rest | None],
) -> tuple[Float[Tensor, "B T Hq D"], Float[Tensor, "B T Hq"]]:
    """One document, queries scaled; round by round, some tiles at a time."""
    (rest, *_) = rests
    assert rest is not None
    term, heads = rest.term, q.shape[2]
    order = key_order(k_buckets, term.buckets).of_heads(heads // k.shape[2])
    i = first_position + torch.arange(q.shape[1], device=q.device)
    reach = reach_of(q_buckets, order, i, term.chunk)
    outs, lses = [], []
    for number in range(term.rounds):
        tiles = tiles_of(reach, order, term, number)
        rows, width = tiles.queries.shape[-1], tiles.keys.shape[-1]
        held = q.shape[0] * heads * (rows * width + (rows + 2 * width) * q.shape[-1])
        step = max(1, (GATHERED if q.device.type == "cpu" else 128 * GATHERED) // held)
        found = []
        for some in range(0, tiles.queries.shape[2], step):
            part = tiles._replace(**{name: getattr(tiles, name)[:, :, some : some + step] for name in _BY_TILE})
            inputs = (q, k, v, part, reach, order, number, i, rests)
            if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
                found.append(checkpoint(_attend, *inputs, use_reentrant=False, preserve_rng_state=False))
            else:
                found.append(_attend(*inputs))
        out, lse = (torch.cat(parts, 2).flatten(2, 3) for parts in zip(*found, strict=True))
        at = tiles.slots  # each slot once: the gradient's sums have one part
        outs.append(out.gather(2, at[..., None].expand(-1, -1, -1, out.shape[-1])).transpose(1, 2))
        lses.append(lse.gather(2, at).transpose(1, 2))
    return (outs[0], lses[0]) if term.rounds == 1 else merge(outs, lses)


def _attend(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    tiles: Tiles,
    reach: Reach,
    order: Order,
    number: int,
    i: Int[Tensor, " T"],
    rests: Sequence[Rest | None],
) -> tuple[Float[Tensor, "B Hq tiles rows D"], Float[Tensor, "B Hq tiles rows"]]:
    """Some of a round's tiles."""
    keep = kept(tiles, reach, order, number)
    per_pattern = q.shape[2] // len(rests)
    for place, own in enumerate(rests):
        assert own is not None
        heads = slice(place * per_pattern, (place + 1) * per_pattern)
        at, keys = i[tiles.queries[:, heads]][..., None], tiles.keys[:, heads, :, None]
        _leave_named(keep[:, heads], own, at, keys, k.shape[1])
    batch = torch.arange(q.shape[0], device=q.device)[:, None, None, None]
    head = torch.arange(q.shape[2], device=q.device)[:, None, None]
    # Indexing, whose gradient adds up in a fixed order on every device; index_select's would not on a GPU.
    own_q = q[batch, tiles.queries, head].masked_fill(~tiles.filled[..., None], 0.0)
    own_k, own_v = (x[batch, tiles.keys, head * k.shape[2] // q.shape[2]] for x in (k, v))
    empty = ~keep.any(-1, keepdim=True)
    with torch.autocast(q.device.type, enabled=False):  # sums are held in float32 inside autocast too
        logits = (own_q @ own_k.transpose(-1, -2)).masked_fill(~keep, -math.inf)  # [B, Hq, tiles, rows, keys]
        # A row with no keys has 0 for its largest logit and 1 for its sum, so that neither it nor its gradient turns into NaN.
        top = logits.detach().amax(-1, keepdim=True).masked_fill(empty, 0.0)
        weights = (logits - top).exp_()
        total = weights.sum(-1, keepdim=True).masked_fill(empty, 1.0)
        out = (weights @ own_v) / total
    return out, (total.log() + top).masked_fill(empty, -math.inf)[..., 0]


def _leave_named(
    keep: Bool[Tensor, "B H tiles rows keys"],
    rest: Rest,
    i: Int[Tensor, "B H tiles rows 1"],
    j: Int[Tensor, "B H tiles 1 keys"],
    n_keys: int,
) -> None:
    """Take out, in place, keys outside the term's cut and those that a static term keeps."""
    if rest.limit is not None:
        keep &= _rule(rest.limit, i, j, n_keys)
    for clause in () if rest.static is None else rest.static.terms:
        keep &= ~_rule(clause, i, j, n_keys)


def _rule(clause: Pattern, i: Tensor, j: Tensor, n_keys: int) -> Tensor:
    parts = (clause.term, clause.limit) if isinstance(clause, Within) else (clause,)
    if all(isinstance(part, _BY_OPERATORS) for part in parts):
        return clause.keeps(i, j, n_keys, True)  # type: ignore[attr-defined, no-any-return]
    named = clause.keeps(i.cpu().numpy(), j.cpu().numpy(), n_keys, True)  # type: ignore[attr-defined]
    return torch.from_numpy(named).to(j.device)
