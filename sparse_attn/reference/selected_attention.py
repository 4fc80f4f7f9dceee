"""Attention over a pattern's static keys and over chosen blocks, by a dense count of keys: the judge of what gathers."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..patterns import Pattern
from ..patterns.chosen import ChosenBlocks
from ..patterns.pattern import Within
from ..patterns.terms import Summaries


def selected_attention(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    patterns: Sequence[Pattern],
    selected: Int[Tensor, "B N H K"],
    *,
    causal: bool,
    scale: float,
    cu_seqlens_q: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
    extra_k: Float[Tensor, "B E R Hkv D"] | None = None,
    extra_v: Float[Tensor, "B E R Hkv D"] | None = None,
) -> tuple[Float[Tensor, "B T Hq D"], Float[Tensor, "B T Hq"]]:
    """One softmax over three kinds of keys, written out for each query head.

    lse[t] = log sum_j n[t,j] exp(scale * q[t] @ k[j]);  out[t] = sum_j n[t,j] exp(scale * q[t] @ k[j] - lse[t]) v[j]
    n[t,j] = 1 where a static term keeps j; elsewhere how often the row of t's tile names j's block, 0 after the query

    Args:
        patterns: One pattern per KV head, or a single one for all, `TopBlocks` included; resolved for one batch example.
        selected: Block numbers, those of a document's tiles after the document's before; negative: none.
        cu_seqlens_q, cu_seqlens_k: Document boundaries of packed sequences (then B is 1), or None.
        extra_k, extra_v: Summary keys of `Anchors`: each counts once.

    Returns:
        out in q's dtype and lse in float32; both computed, and lse returned, in float64 for float64 inputs, in float32
        otherwise. A query with no keys gives output 0 and LSE -inf, and passes no gradient.

    Cost: O(T x S) time and memory per head, and a Python loop over queries.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    (n_batch, n_queries, hq, _), hkv = q.shape, k.shape[2]
    q_bounds = [0, n_queries] if cu_seqlens_q is None else list(cu_seqlens_q)
    k_bounds = [0, k.shape[1]] if cu_seqlens_k is None else list(cu_seqlens_k)
    out = torch.zeros(n_batch, hq, n_queries, q.shape[3], dtype=wide, device=q.device)
    lse = torch.full((n_batch, hq, n_queries), float("-inf"), dtype=wide, device=q.device)
    first_tile, first_extra = 0, 0
    for index in range(len(q_bounds) - 1):
        q0, q1, k0, k1 = q_bounds[index], q_bounds[index + 1], k_bounds[index], k_bounds[index + 1]
        for b in range(n_batch):
            for h in range(hq):
                g = h // (hq // hkv)
                pattern = patterns[g % len(patterns)]
                pattern = pattern if cu_seqlens_q is None else pattern.example(index)
                choice = selected[b, first_tile:, h * selected.shape[2] // hq]
                times = _times(pattern, choice.tolist(), q1 - q0, k1 - k0, causal).to(q.device, wide)
                queries, keys, values = q[b, q0:q1, h].to(wide), k[b, k0:k1, g].to(wide), v[b, k0:k1, g].to(wide)
                logits = queries @ keys.T
                own_v = None
                anchors = next((term for term in pattern.terms if isinstance(term, Summaries)), None)
                if anchors is not None and extra_k is not None and extra_v is not None:
                    seen = first_extra + torch.arange(k1 - k0 - (q1 - q0), k1 - k0, device=q.device) // anchors.block
                    own_k, own_v = extra_k[b, seen, :, g].to(wide), extra_v[b, seen, :, g].to(wide)
                    logits = torch.cat([logits, torch.einsum("td,trd->tr", queries, own_k)], 1)
                    times = torch.cat([times, times.new_ones(q1 - q0, anchors.extra_keys)], 1)
                own_out, own_lse = _weighted_softmax(logits * scale, times, values, own_v)
                out[b, h, q0:q1], lse[b, h, q0:q1] = own_out, own_lse
        anchors = next((term for term in patterns[0].terms if isinstance(term, Summaries)), None)
        first_extra += 0 if anchors is None else -(-(k1 - k0) // anchors.block)
        first_tile += _top_blocks(patterns[0])[0].tiles(q1 - q0, k1 - k0)
    return out.transpose(1, 2).to(q.dtype), lse.transpose(1, 2)


def _top_blocks(pattern: Pattern) -> tuple[ChosenBlocks, Pattern | None]:
    """The term that chooses, and the window that it is cut to."""
    for clause in pattern.terms:
        term, limit = (clause.term, clause.limit) if isinstance(clause, Within) else (clause, None)
        if isinstance(term, ChosenBlocks):
            return term, limit
    raise ValueError(f"pattern {pattern!r} has no TopBlocks term")


def _times(pattern: Pattern, choice: list[list[int]], n_queries: int, n_keys: int, causal: bool) -> Tensor:
    """How often each query's softmax counts each key, ``[T, S]``."""
    term, limit = _top_blocks(pattern)
    times = torch.zeros(n_queries, n_keys, dtype=torch.int64)
    first = n_keys - n_queries
    for t in range(n_queries):
        for block in choice[(first + t) // term.rows - first // term.rows]:
            if block >= 0:
                times[t, block * term.block : (block + 1) * term.block] += 1
    if causal:
        times = times.tril(first)
    if limit is not None:
        times *= torch.from_numpy(limit.mask(n_queries, n_keys, causal=causal))
    static = torch.from_numpy(pattern.mask(n_queries, n_keys, causal=causal))
    return torch.where(static, 1, times)


def _weighted_softmax(
    logits: Float[Tensor, "T N"],
    times: Float[Tensor, "T N"],
    values: Float[Tensor, "S D"],
    own_values: Float[Tensor, "T R D"] | None,
) -> tuple[Float[Tensor, "T D"], Float[Tensor, " T"]]:
    """The N logits of a query are of the S keys that all share, then of the R whose values are its own."""
    empty = (times == 0).all(1, keepdim=True)
    # A row with no keys gets logits 0 for the moment, so that neither it nor its gradient turns into NaN.
    logits = logits.masked_fill(times == 0, float("-inf")).masked_fill(empty, 0.0)
    logits = logits + torch.where(times == 0, 1, times).log()
    weights = logits.softmax(-1)
    out = weights[:, : len(values)] @ values
    if own_values is not None:
        out = out + torch.einsum("tr,trd->td", weights[:, len(values) :], own_values)
    return out.masked_fill(empty, 0.0), logits.logsumexp(-1).masked_fill(empty[:, 0], float("-inf"))
