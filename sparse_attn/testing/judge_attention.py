"""Attention judged whole: output, LSE and the gradient of every input, against the oracle and within the budget."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sparse_attn.ops import attention
from sparse_attn.patterns import Pattern, parse
from sparse_attn.patterns.chosen import ChosenBlocks
from sparse_attn.patterns.pattern import Within
from sparse_attn.patterns.terms import Summaries

from .error_budget import assert_within_budget


def judge_attention(
    inputs: dict[str, Tensor],
    pattern: Pattern | Sequence[Pattern],
    *,
    implementation: str,
    gradients: bool = True,
    **options: Any,
) -> None:
    """Fail unless an implementation of `attention` stays within the error budget, in everything that it returns.

    Args:
        inputs: q, k, v, and extra_k, extra_v where the pattern has anchors, in the dtype to be judged. Random
            gradients, of the output and of the LSE, are drawn here.
        pattern, options: As `attention` takes them (causal, scale, cu_seqlens_q, cu_seqlens_k, selected without
            repetitions).
        implementation: The one to judge.
        gradients: Judge gradients too.

    Raises:
        AssertionError: names the first of out, lse, dq, dk, dv, dextra_k, dextra_v that is over its budget.
    """
    q = inputs["q"]
    weights = [torch.randn(q.shape, dtype=torch.float64), torch.randn(q.shape[:-1], dtype=torch.float64)]
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    oracle = _run(wide, weights, gradients, pattern, implementation="reference", **options)
    plain = _run(inputs, weights, gradients, pattern, **options)
    got = _run(inputs, weights, gradients, pattern, implementation=implementation, **options)
    for name in oracle:
        wanted_dtype = plain[name].dtype if name == "lse" else q.dtype
        assert got[name].dtype == wanted_dtype, f"{name} is {got[name].dtype}, not {wanted_dtype}"
        assert_within_budget(name, got[name], oracle[name], plain[name])


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | Sequence[Pattern],
    *,
    causal: bool = True,
    scale: float | None = None,
    cu_seqlens_q: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    selected: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What one writes down without a library: a dense mask, a softmax, two products, all in the inputs' dtype.

    Shapes and meaning are those of `attention`; returns out and LSE. This is the baseline of the error budget.
    """
    packed = cu_seqlens_q is not None
    if packed:
        q, k, v = q[None], k[None], v[None]
        extra_k, extra_v = (None if extra is None else extra[None] for extra in (extra_k, extra_v))
    (n_batch, n_queries, hq, d), hkv = q.shape, k.shape[2]
    patterns = [pattern] * hkv if isinstance(pattern, Pattern) else list(pattern)
    boundaries = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    keep = torch.stack(
        [
            torch.stack(
                [
                    torch.from_numpy((own if packed else own.example(b)).mask(n_queries, k.shape[1], causal=causal, **boundaries))
                    for own in patterns
                ]
            ).repeat_interleave(hq // hkv, 0)
            for b in range(n_batch)
        ]
    )  # fmt: skip
    keep = keep.to(q.device)
    if selected is not None:
        keep = keep | _chosen_keys(patterns[0], selected if not packed else selected[None], keep, causal, boundaries)
    keys, values = (x.repeat_interleave(hq // hkv, 2).transpose(1, 2) for x in (k, v))
    queries = q.transpose(1, 2)
    logits = queries @ keys.transpose(2, 3)
    if extra_k is not None and extra_v is not None:
        anchors = next(term for term in patterns[0].terms if isinstance(term, Summaries))
        seen = _extra_rows(anchors.block, n_queries, k.shape[1], cu_seqlens_q, cu_seqlens_k)
        own_k, own_v = (x[:, seen].repeat_interleave(hq // hkv, 3).movedim(3, 1) for x in (extra_k, extra_v))
        extra_logits = (queries[:, :, :, None] @ own_k.transpose(3, 4))[:, :, :, 0]
        logits = torch.cat([extra_logits, logits], -1)
        keep = torch.cat([torch.ones_like(extra_logits, dtype=torch.bool), keep], -1)
    logits = logits * (d**-0.5 if scale is None else scale)
    weights = logits.masked_fill(~keep, float("-inf")).softmax(-1).masked_fill(~keep, 0.0)
    logits = logits if q.dtype == torch.float64 else logits.float()
    lse = logits.masked_fill(~keep, float("-inf")).logsumexp(-1)
    out = weights[..., weights.shape[-1] - k.shape[1] :] @ values
    if extra_k is not None:
        out = out + (weights[:, :, :, None, : own_v.shape[3]] @ own_v)[:, :, :, 0]
    out, lse = out.transpose(1, 2), lse.transpose(1, 2)
    return (out[0], lse[0]) if packed else (out, lse)


def _chosen_keys(
    pattern: Pattern, selected: Tensor, keep: Tensor, causal: bool, boundaries: dict[str, Sequence[int] | None]
) -> Tensor:
    """Which keys of chosen blocks each query head may see, in the shape of `keep`, ``[B, Hq, T, S]``."""
    hq, n_queries, n_keys = keep.shape[1:]
    clause = next(
        own for own in pattern.terms if isinstance(own.term if isinstance(own, Within) else own, ChosenBlocks)
    )
    term, limit = (clause.term, clause.limit) if isinstance(clause, Within) else (clause, parse("full()"))
    assert isinstance(term, ChosenBlocks)
    q_bounds = boundaries["cu_seqlens_q"] or [0, n_queries]
    k_bounds = boundaries["cu_seqlens_k"] or (boundaries["cu_seqlens_q"] or [0, n_keys])
    rows = torch.zeros(n_queries, dtype=torch.int64, device=keep.device)  # of `selected`
    blocks = torch.full((n_keys,), -1, dtype=torch.int64, device=keep.device)
    first = 0
    for (q0, q1), (k0, k1) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True):
        tiles = torch.arange(k1 - k0 - (q1 - q0), k1 - k0, device=keep.device) // term.rows
        if q1 > q0:
            rows[q0:q1] = tiles - tiles[0] + first
            first += int(tiles[-1] - tiles[0]) + 1
        blocks[k0:k1] = torch.arange(k1 - k0, device=keep.device) // term.block
    named = (selected.long()[:, rows, :, :, None] == blocks).any(3).transpose(1, 2)
    allowed = torch.from_numpy(limit.mask(n_queries, n_keys, causal=causal, **boundaries)).to(keep.device)
    return named.repeat_interleave(hq // selected.shape[2], 1) & allowed


def _extra_rows(
    block: int, n_queries: int, n_keys: int, q_bounds: Sequence[int] | None, k_bounds: Sequence[int] | None
) -> list[int]:
    """The row of extra keys that each query sees."""
    q_bounds = [0, n_queries] if q_bounds is None else q_bounds
    k_bounds = q_bounds if k_bounds is None and n_keys == q_bounds[-1] else k_bounds or [0, n_keys]
    rows: list[int] = []
    first = 0
    for (q0, q1), (k0, k1) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True):
        rows.extend(first + i // block for i in range(k1 - k0 - (q1 - q0), k1 - k0))
        first += -(-(k1 - k0) // block)
    return rows


def _run(
    inputs: dict[str, Tensor],
    weights: list[Tensor],
    gradients: bool,
    pattern: Pattern | Sequence[Pattern],
    implementation: str | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    leaves: dict[str, Any] = {
        name: tensor.detach().clone().requires_grad_(gradients) for name, tensor in inputs.items()
    }
    if implementation is None:
        out, lse = plain_attention(**leaves, pattern=pattern, **options)
    else:
        out, lse = attention(**leaves, pattern=pattern, return_lse=True, implementation=implementation, **options)
    results = {"out": out.detach(), "lse": lse.detach()}
    if gradients:
        # Where a query has no keys the LSE is -inf: it counts as 0, and passes no gradient.
        finite = torch.where(torch.isfinite(lse), lse, 0.0)
        out = torch.where(torch.isfinite(lse)[..., None], out, 0.0)
        loss = (out.double() * weights[0].to(out.device)).sum() + (finite.double() * weights[1].to(out.device)).sum()
        loss.backward()
        for name, leaf in leaves.items():
            results["d" + name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return results
