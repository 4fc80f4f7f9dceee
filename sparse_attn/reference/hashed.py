"""Which keys hashing shows each query, pair by pair from the definition, and attention over them: the judge of gathers."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..patterns import Pattern


def hashed_mask(
    q_buckets: Int[Tensor, "rounds T"], k_buckets: Int[Tensor, "rounds S"], chunk: int
) -> Bool[Tensor, "T S"]:
    """Whether query t at position i = S - T + t sees key j by hashing, for one document and head.

    In some round j <= i has i's bucket, and its chunk is the one of the bucket's last key up to i, or the one before.
    Keys of a bucket are cut into chunks as they come, `chunk` at a time.
    """
    (rounds, n_queries), n_keys = q_buckets.shape, k_buckets.shape[1]
    seen = torch.zeros(n_queries, n_keys, dtype=torch.bool)
    for r in range(rounds):
        for t in range(n_queries):
            i = n_keys - n_queries + t
            same = [j for j in range(i + 1) if k_buckets[r, j] == q_buckets[r, t]]
            chunks = [same[start : start + chunk] for start in range(0, len(same), chunk)]
            for own in chunks[-2:]:
                seen[t, own] = True
    return seen


def hashed_attention(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    patterns: Sequence[Pattern],
    q_buckets: Int[Tensor, "rounds B T Hq"],
    k_buckets: Int[Tensor, "rounds B S Hkv"],
    *,
    chunk: int,
    scale: float,
    limit: Pattern | None = None,
    cu_seqlens_q: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "B T Hq D"], Float[Tensor, "B T Hq"]]:
    """One softmax over what a pattern's static terms keep and what hashing shows, with its LSE; causal.

    Args:
        patterns: One per KV head, or a single one; a hashing term among them shows nothing by itself.
        q_buckets, k_buckets: Of every query and key, in each round.
        limit: The window that hashing is cut to.

    Returns:
        As `masked_attention`, computed in float64 for float64 inputs, in float32 otherwise.

    Cost: O(T x S) memory, and Python loops over T x S pairs, per head.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    (n_batch, n_queries, hq, _), (n_keys, hkv) = q.shape, k.shape[1:3]
    q_bounds = [0, n_queries] if cu_seqlens_q is None else list(cu_seqlens_q)
    k_bounds = [0, n_keys] if cu_seqlens_k is None else list(cu_seqlens_k)
    out = torch.zeros(q.shape, dtype=wide, device=q.device)
    lse = torch.full(q.shape[:3], float("-inf"), dtype=wide, device=q.device)
    for index in range(len(q_bounds) - 1):
        own_q, own_k = slice(*q_bounds[index : index + 2]), slice(*k_bounds[index : index + 2])
        length = own_q.stop - own_q.start, own_k.stop - own_k.start
        for b in range(n_batch):
            for h in range(hq):
                g = h // (hq // hkv)
                pattern = patterns[g % len(patterns)]
                pattern = pattern if cu_seqlens_q is None else pattern.example(index)
                keep = hashed_mask(q_buckets[:, b, own_q, h].cpu(), k_buckets[:, b, own_k, g].cpu(), chunk)
                if limit is not None:
                    keep &= torch.from_numpy(limit.mask(*length))
                keep = (keep | torch.from_numpy(pattern.mask(*length))).to(q.device)
                some = keep.any(1)
                logits = scale * (q[b, own_q, h].to(wide)[some] @ k[b, own_k, g].to(wide).T)
                logits = logits.masked_fill(~keep[some], float("-inf"))
                rows = torch.arange(own_q.start, own_q.stop, device=q.device)[some]
                out[b, rows, h] = logits.softmax(1) @ v[b, own_k, g].to(wide)
                lse[b, rows, h] = logits.logsumexp(1)
    return out.to(q.dtype), lse
