"""Masked softmax attention, written out: the judge of every faster implementation."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..patterns import Pattern
from ..patterns.terms import Summaries


def masked_attention(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    patterns: Sequence[Pattern],
    *,
    causal: bool,
    scale: float,
    cu_seqlens_q: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
    extra_k: Float[Tensor, "B N R Hkv D"] | None = None,
    extra_v: Float[Tensor, "B N R Hkv D"] | None = None,
) -> tuple[Float[Tensor, "B T Hq D"], Float[Tensor, "B T Hq"]]:
    """Softmax attention under each KV head's dense mask, with its LSE.

    lse[b,t,h] = log sum_J exp(scale * q[b,t,h] @ k[b,J,g].T);  out[b,t,h] = exp(logits - lse) @ v[b,J,g]
    J = the keys that ``patterns[g].mask`` keeps for query t, and the R extra keys of row position // block

    Args:
        patterns: One pattern per KV head, or a single one for all; resolved for one batch example.
        cu_seqlens_q, cu_seqlens_k: Document boundaries of packed sequences (then B is 1), or None.
        extra_k, extra_v: Summary keys; the documents' rows stand one after the other.

    Returns:
        out in q's dtype and lse in float32; both computed, and lse returned, in float64 for float64 inputs, in float32
        otherwise. A query with no keys gives output 0 and LSE -inf, and passes no gradient.

    Cost: O(T x S) time and memory per head.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[2] // k.shape[2]
    q_bounds = [0, q.shape[1]] if cu_seqlens_q is None else list(cu_seqlens_q)
    k_bounds = [0, k.shape[1]] if cu_seqlens_k is None else list(cu_seqlens_k)
    if len(q_bounds) == 1:  # no documents, no tokens
        return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=wide)
    heads = []
    for head in range(k.shape[2]):
        pattern = patterns[head % len(patterns)]
        anchors = next((term for term in pattern.terms if isinstance(term, Summaries)), None)
        documents = []
        row = 0
        for index, (q0, q1, k0, k1) in enumerate(
            zip(q_bounds[:-1], q_bounds[1:], k_bounds[:-1], k_bounds[1:], strict=True)
        ):
            own = pattern.example(index) if cu_seqlens_q is not None else pattern
            queries = q[:, q0:q1, head * group : (head + 1) * group].to(wide)
            keys, values = k[:, k0:k1, head].to(wide), v[:, k0:k1, head].to(wide)
            keep = torch.from_numpy(own.mask(q1 - q0, k1 - k0, causal=causal)).to(q.device)
            logits = torch.einsum("btgd,bsd->btgs", queries, keys)
            own_v = None
            if anchors is not None and extra_k is not None and extra_v is not None:
                seen = row + torch.arange(k1 - k0 - (q1 - q0), k1 - k0, device=q.device) // anchors.block
                row += -(-(k1 - k0) // anchors.block)
                own_k, own_v = extra_k[:, seen, :, head].to(wide), extra_v[:, seen, :, head].to(wide)
                logits = torch.cat([logits, torch.einsum("btgd,btrd->btgr", queries, own_k)], -1)
                keep = torch.cat([keep, keep.new_ones(q1 - q0, anchors.extra_keys)], 1)
            documents.append(_softmax(logits * scale, keep, values, own_v))
        heads.append([torch.cat(parts, 1) for parts in zip(*documents, strict=True)])
    out, lse = (torch.cat(parts, 2) for parts in zip(*heads, strict=True))
    return out.to(q.dtype), lse


def _softmax(
    logits: Float[Tensor, "B T G N"],
    keep: Tensor,
    values: Float[Tensor, "B S D"],
    own_values: Float[Tensor, "B T R D"] | None,
) -> tuple[Float[Tensor, "B T G D"], Float[Tensor, "B T G"]]:
    """The N logits of a query are of the S keys that all see, then of the R whose values are its own."""
    empty = ~keep.any(1)
    # A row with no keys gets logits 0 for the moment, so that neither it nor its gradient turns into NaN.
    keep = keep | empty[:, None]
    logits = logits.masked_fill(~keep[None, :, None], float("-inf"))
    logits = logits.masked_fill(empty[None, :, None, None], 0.0)
    weights = logits.softmax(-1)
    out = torch.einsum("btgs,bsd->btgd", weights[..., : values.shape[1]], values)
    if own_values is not None:
        out = out + torch.einsum("btgr,btrd->btgd", weights[..., values.shape[1] :], own_values)
    lse = logits.logsumexp(-1)
    return out.masked_fill(empty[None, :, None, None], 0.0), lse.masked_fill(empty[None, :, None], float("-inf"))
