"""Attention over chosen blocks: gathers them for some tiles of queries at a time, forward and backward.

With base-2 logits s = log2(e) * scale * q k^T over a tile's chosen keys, m = max s, z = sum 2^(s - m):

    out = 2^(s - m) v / z;   LSE = ln(2) * (m + log2 z)
    delta = sum_d(dout * out) - dlse;   p = 2^(s - m) / z;   ds = p * (dout v^T - delta)
    dq = scale * ds k;   dk[block] += scale * ds^T q;   dv[block] += p^T dout

Gradients of keys are added whole blocks at a time, in the order of the tiles: they repeat to the bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..patterns import Pattern
from ..patterns.documents import split_documents
from .forward import LOG2_E
from .selected_keys import ChosenKeys, Gathered


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
) -> tuple[Float[Tensor, "B T Hq D"], Float[Tensor, "B T Hq"]]:
    """Softmax attention over the keys of chosen blocks that no static term of the pattern names.

    Args:
        patterns: One pattern for all KV heads, or one for each; all with the same `TopBlocks` term.
        selected: Block numbers for each tile and head, the documents' tiles one after the other; negative or beyond the
            document's end: no block. H is Hkv or Hq.

    Returns:
        The output in q's dtype, and the natural-log LSE, in float32 (float64 inputs: float64), in which sums are held.
        A query without chosen keys has output 0, LSE -inf and zero gradients.

    Gradients flow to q, k and v, from both results, once (not twice). Time: O(T / rows x H x K x block x (D + rows x
    heads of a group)); memory: inputs, results, and some tens of MiB for what is gathered at once.
    """
    documents = split_documents(q.shape[1], k.shape[1], cu_seqlens_q, cu_seqlens_k)
    keys = ChosenKeys(
        selected,
        patterns,
        documents,
        causal=causal,
        heads=(q.shape[2], k.shape[2]),
        head_dim=q.shape[3],
        packed=cu_seqlens_q is not None,
    )
    return SelectedAttention.apply(q, k, v, keys, scale)


class SelectedAttention(torch.autograd.Function):
    """`selected_attention` with its own backward pass, which gathers again and saves two numbers for each row."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # sums are held in float32 inside autocast too
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, chosen: ChosenKeys, scale: float
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros(q[..., 0].numel(), q.shape[3], dtype=dtype, device="cpu")
        total = torch.zeros(q[..., 0].numel(), dtype=dtype, device="cpu")
        top = torch.full_like(total, torch.finfo(dtype).min)
        rows = [tensor.reshape(-1, tensor.shape[3]) for tensor in (q, k, v)]
        for gathered in chosen:
            logits = _logits(rows[0], rows[1], gathered, scale, dtype)
            own_top = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(dtype).min)
            weights = logits.sub_(own_top).exp2_()
            own_total = weights.sum(-1, keepdim=True)
            # The key of the maximum adds 1, so that a sum below 1 is a row without keys: its 0 / 0 is to be 0.
            own_out = (weights @ _rows(rows[2], gathered.keys, dtype)).div_(own_total.clamp(min=1))
            at, inside = _own_rows(gathered)
            out[at] = own_out.flatten(0, 1)[inside]
            top[at], total[at] = own_top.flatten()[inside], own_total.flatten()[inside]
        narrow = out.to(q.dtype).view(q.shape)
        ctx.save_for_backward(q, k, v, narrow, top, total)
        ctx.chosen, ctx.scale = chosen, scale
        ctx.set_materialize_grads(False)
        return narrow, torch.log2(total).add_(top).mul_(1 / LOG2_E).view(q.shape[:3])

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, top, total = ctx.saved_tensors
        chosen, scale, dtype = ctx.chosen, ctx.scale, top.dtype
        head_dim, term = q.shape[3], chosen.term
        delta = torch.zeros_like(top)
        if d_out is not None:
            delta += (d_out.to(dtype) * out.to(dtype)).sum(-1).flatten()
        if d_lse is not None:
            delta -= d_lse.flatten()
        d_rows = torch.zeros_like(q) if d_out is None else d_out
        q_rows, k_rows, v_rows, d_rows = (tensor.reshape(-1, head_dim) for tensor in (q, k, v, d_rows))
        d_q = torch.zeros(q_rows.shape, dtype=dtype, device="cpu")
        d_k, d_v = (
            torch.zeros(k.shape[0] * k.shape[2] * chosen.n_blocks, term.block * head_dim, dtype=dtype, device="cpu")
            for _ in range(2)
        )
        for gathered in chosen:
            at, inside = _own_rows(gathered)
            queries = gathered.queries.flatten(1)
            weights = _logits(q_rows, k_rows, gathered, scale, dtype)
            weights = weights.sub_(top[queries][..., None]).exp2_().div_(total[queries].clamp(min=1)[..., None])
            own_d = _rows(d_rows, queries, dtype)
            _add_blocks(d_v, weights.mT @ own_d, gathered)
            d_logits = (own_d @ _rows(v_rows, gathered.keys, dtype).mT).sub_(delta[queries][..., None]).mul_(weights)
            d_q[at] = (d_logits @ _rows(k_rows, gathered.keys, dtype)).mul_(scale).flatten(0, 1)[inside]
            own_q = _rows(q_rows, queries, dtype) * scale
            _add_blocks(d_k, d_logits.mT @ own_q, gathered)
        d_keys, d_values = (_from_blocks(grad, k, chosen) for grad in (d_k, d_v))
        return d_q.view(q.shape).to(q.dtype), d_keys, d_values, None, None


def _logits(q_rows: Tensor, k_rows: Tensor, gathered: Gathered, scale: float, dtype: torch.dtype) -> Tensor:
    """Base-2 logits ``[M, R * G, n]``, -inf where a query does not count a key."""
    queries = _rows(q_rows, gathered.queries.flatten(1), dtype) * (scale * LOG2_E)
    logits = queries @ _rows(k_rows, gathered.keys, dtype).mT
    rows, group = gathered.queries.shape[1:]
    logits.unflatten(1, (rows, group)).masked_fill_(~gathered.keep[:, :, None], float("-inf"))
    return logits


def _own_rows(gathered: Gathered) -> tuple[Tensor, Tensor]:
    """The rows of q that a tile's inside positions are, and where they stand among all of ``[M * R * G]``."""
    inside = gathered.inside[..., None].expand(gathered.queries.shape).flatten()
    return gathered.queries.flatten()[inside], inside


def _rows(table: Float[Tensor, "rows D"], at: Int[Tensor, "M n"], dtype: torch.dtype) -> Float[Tensor, "M n D"]:
    return table.index_select(0, at.flatten()).to(dtype).view(*at.shape, table.shape[1])


def _add_blocks(grad: Float[Tensor, "blocks numbers"], per_key: Float[Tensor, "M n D"], gathered: Gathered) -> None:
    """Add what each tile gives to its blocks: a product with ones where tiles and blocks meet, several times faster
    than adding rows one after the other."""
    found, which = gathered.blocks.flatten().unique(return_inverse=True)
    parts = per_key.reshape(len(which), -1)
    at = torch.stack([which, torch.arange(len(which), device="cpu")])
    with torch.sparse.check_sparse_tensor_invariants(enable=False):  # some releases warn where nobody has said so
        meeting = torch.sparse_coo_tensor(at, torch.ones_like(parts[:, 0]), (len(found), len(which)))
    grad[found] = grad[found].add_(torch.sparse.mm(meeting, parts))


def _from_blocks(grad: Float[Tensor, "rows numbers"], k: Tensor, chosen: ChosenKeys) -> Float[Tensor, "B S Hkv D"]:
    n_batch, n_keys, hkv, head_dim = k.shape
    by_block = grad.view(n_batch, hkv, chosen.n_blocks, chosen.term.block, head_dim)
    parts, first = [], 0
    for document in chosen.documents:
        stop = first + -(-document.n_keys // chosen.term.block)
        parts.append(by_block[:, :, first:stop].flatten(2, 3)[:, :, : document.n_keys])
        first = stop
    whole = torch.cat(parts, 2) if parts else by_block.flatten(2, 3)
    assert whole.shape[2] == n_keys
    return whole.transpose(1, 2).to(k.dtype)
