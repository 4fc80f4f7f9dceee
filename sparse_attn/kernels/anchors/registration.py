"""The kernels of anchors as one step of autograd, which keys and values pass through on their way to attention."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention.registration import check_served, on_device
from ..attention.tiles import row_major
from .backward_chunks import backward_chunks
from .backward_pool import backward_pool
from .backward_scan import backward_scan
from .pool import pool
from .scan import State, scan
from .spans import spans


def fused_anchors(
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    pooling: Tensor | None,
    state: tuple[Tensor, Tensor | None, Tensor, Tensor],
    *,
    block: int,
    scale: float,
    cu_seqlens: tuple[int, ...] | None = None,
) -> tuple[Tensor, ...]:
    """Blocks pooled, and rows of the running softmax over them.

    Args:
        k, v: ``[B, S, Hkv, D]``; packed documents have B = 1.
        queries, pooling: ``[Hkv, R, D]``, ``[Hkv, D]`` or None.
        state: Before the first block of each example or document: top, total ``[n, R, Hkv]`` and sums of keys and of values
            ``[n, R, Hkv, D]``, float32, at any strides. A total of None is 1: the state is one element, of any dtype, whose
            logit is `top`, with that logit's gradient.

    Returns:
        k, v (to be used from here on, so that their gradients are added up in one pass), summary keys and values
        ``[B, N, R, Hkv, D]``, and the four tensors of the state after the last block.

    Raises:
        NotImplementedError: dtype, head dim, device or GPU that the kernels do not serve.
    """
    check_served(k)
    top, total, key_sums, value_sums = state
    found = _FusedAnchors.apply(k, v, queries, pooling, top, total, key_sums, value_sums, block, scale, cu_seqlens)
    return found  # type: ignore[no-any-return]


class _FusedAnchors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, queries: Tensor, pooling: Tensor | None, *rest: Any) -> Any:  # type: ignore[override]
        top, total, key_sums, value_sums, block, scale, cu_seqlens = rest
        where = spans(k.shape[0], k.shape[1], block, cu_seqlens, k.device)
        own_k, own_v = row_major(k), row_major(v)
        own_queries = queries.contiguous()
        own_pooling = None if pooling is None else pooling.contiguous()
        before = State(top, total, key_sums, value_sums)
        with on_device(k):
            pooled, logits, log_sums = pool(own_k, own_v, own_pooling, own_queries, where, scale)
            summaries, marks, after = scan(pooled, logits, before, where)
        ctx.save_for_backward(
            own_k, own_v, own_queries, own_pooling, pooled, logits, log_sums, summaries, marks, *before
        )
        ctx.where, ctx.scale = where, scale
        ctx.dtypes = [None if x is None else x.dtype for x in (queries, pooling, *before)]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(after.top)
        return k, v, summaries[0], summaries[1], *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        given_k, given_v, d_rows_k, d_rows_v, _, *d_states = gradients
        k, v, queries, pooling, pooled, logits, log_sums, summaries, marks, *state = ctx.saved_tensors
        before = State(*state)
        d_rows = (_dense(d_rows_k, summaries[0]), _dense(d_rows_v, summaries[0]))
        d_after: Any = None
        if any(x is not None for x in d_states):
            shapes = [x.transpose(1, 2).shape for x in (before.top, before.key_sums, before.value_sums)]
            d_after = tuple(
                marks.new_zeros(shape) if x is None else x.transpose(1, 2).contiguous()
                for x, shape in zip(d_states, shapes, strict=True)
            )
        with on_device(k):
            carries = backward_chunks(summaries, marks, d_rows, before, d_after, ctx.where)
            parts, d_queries = backward_scan(pooled, logits, queries, marks, carries, d_rows, ctx.where, ctx.scale)
            given = None
            if given_k is not None or given_v is not None:
                given = row_major(_dense(given_k, k)), row_major(_dense(given_v, v))
            dk, dv, d_pooling = backward_pool(k, v, pooling, pooled, log_sums, parts, given, ctx.where, ctx.scale)
        # A state's top only scales the rest; that of one element is its logit.
        d_first = (carries.first, None) if before.total is None else (None, carries.first)
        found = (d_queries.sum(0), None if d_pooling is None else d_pooling.sum(0), *d_first, *carries.d_sums)
        of_weights = (None if x is None else x.to(dtype) for x, dtype in zip(found, ctx.dtypes, strict=True))
        return dk, dv, *of_weights, None, None, None


def _dense(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient in rows as the kernels read them; zeros where there is none."""
    if gradient is None:
        return torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    return gradient.contiguous()
