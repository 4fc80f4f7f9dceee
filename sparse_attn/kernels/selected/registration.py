"""The kernels of chosen blocks as operators of PyTorch, as `kernels/attention/registration.py` does for static patterns."""

from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ...patterns.parse import parse_heads
from ..attention.backward_rows import backward_rows
from ..attention.launch import Inputs
from ..attention.registration import (
    backward_pass,
    boundaries,
    capability_of,
    check_served,
    forward_pass,
    keep_if_captured,
    on_device,
)
from ..attention.tiles import row_major
from .backward_blocks import backward_blocks
from .forward_blocks import forward_blocks
from .forward_tiles import forward_tiles
from .merge import merge_two
from .places import Places, places
from .settle import settle
from .tiles import MOST_HEADS, most_keys


def fused_selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    patterns: str,
    *,
    causal: bool,
    scale: float,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the keys of chosen blocks that no static part of the pattern names, with its LSE.

    Args:
        q, k, v: ``[B, T, Hq, D]``, ``[B, S, Hkv, D]``; packed documents have B = 1.
        selected: ``[B, N, H, K]`` integers: block numbers, counted in the document; -1: none. H is Hkv, or Hq: then there
            is no gradient. A number that is no block of the document counts as -1, and one that a row names twice counts twice.
        patterns: The text of one pattern, or of one for each KV head, a line each. Its `TopBlocks` term says how many keys a
            block has, and how many positions choose together.
        cu_seqlens_q, cu_seqlens_k: Document boundaries, both or none. From a CUDA tensor they are read once.

    Differentiable in q, k and v, from both results. Cost: 4 * Hq * D FLOPs a chosen key and query, 2.5 times that backward;
    where each query chooses for itself up to 1 GiB of memory beside the result, and reading and writing 4 * Hq * D * K bytes
    a query.

    Raises:
        NotImplementedError: dtype, head dim, device or GPU that the kernels do not serve, more than 128 heads that share a
            choice, or gradients where each query head chooses for itself.
    """
    return _run(q, k, v, None, None, selected, cu_seqlens_q, cu_seqlens_k, patterns, causal, scale, False)


def fused_union_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    patterns: str,
    *,
    causal: bool,
    scale: float,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over the static part of the pattern and the chosen blocks together, under one softmax, with its LSE.

    Arguments and errors are those of `fused_selected_attention` and of `fused_attention`. The passes over the two parts
    are merged once; backward both take the whole's LSE and output, so that merging has no gradient of its own.
    """
    return _run(q, k, v, extra_k, extra_v, selected, cu_seqlens_q, cu_seqlens_k, patterns, causal, scale, True)


def _run(*arguments: Any) -> tuple[Tensor, Tensor]:
    q, k, v, _, _, selected, *_ = arguments
    _check_choice(q, k, v, selected)
    plain = type(q) in (Tensor, torch.nn.Parameter)  # a subclass has ways of its own through the dispatcher
    if not plain or torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return torch.ops.sparse_attn.fused_selected_attention(*arguments)  # type: ignore[no-any-return]
    return _FusedSelectedAttention.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]


def _check_choice(q: Tensor, k: Tensor, v: Tensor, selected: Tensor) -> None:
    heads = selected.shape[2]
    if heads not in (q.shape[2], k.shape[2]):
        raise ValueError(f"selected must have {k.shape[2]} or {q.shape[2]} heads, got {heads}")
    if q.shape[2] // heads > MOST_HEADS:
        raise NotImplementedError(
            f"implementation 'triton' takes at most {MOST_HEADS} query heads that share a choice, got "
            f"{q.shape[2] // heads}; use 'reference'"
        )
    if heads != k.shape[2] and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise NotImplementedError(
            f"implementation 'triton' has no gradient where each query head chooses for itself: selected has {heads} heads, "
            f"k has {k.shape[2]}; use one choice for each KV head"
        )


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    selected: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    patterns: str,
    causal: bool,
    scale: float,
    whole: bool,
) -> tuple[Tensor, Tensor]:
    check_served(q)
    if not q.numel():
        return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    outs, lses = [], []
    with on_device(q):
        for inputs, own, where in _runs(q, k, v, selected, cu_seqlens_q, cu_seqlens_k, patterns, causal):
            chosen = settle(own, where)
            run = forward_blocks if _from_blocks(where, inputs.q.shape[1]) else forward_tiles
            out, lse = run(inputs, chosen, where, scale, capability_of(q))
            outs.append(out.view(*q.shape[:2], *out.shape[2:]))
            lses.append(lse.view(*q.shape[:2], lse.shape[2]))
        out, lse = (torch.cat(outs, 2), torch.cat(lses, 2)) if len(outs) > 1 else (outs[0], lses[0])
        if whole:
            static = forward_pass(
                q, k, v, extra_k, extra_v, cu_seqlens_q, cu_seqlens_k, patterns, causal, scale, "triton"
            )
            out, lse = merge_two(*static, out, lse)
    return out, lse


_operator = torch.library.custom_op("sparse_attn::fused_selected_attention", _forward, mutates_args=())


@_operator.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    selected: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    patterns: str,
    causal: bool,
    scale: float,
    whole: bool,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


def _backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    selected: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    patterns: str,
    causal: bool,
    scale: float,
    whole: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not q.numel():
        zeros = [q.new_zeros(0 if x is None or not whole else x.shape) for x in (extra_k, extra_v)]
        return torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v), zeros[0], zeros[1]
    found: list[tuple[Tensor, ...]] = []
    group = q.shape[2] // k.shape[2]
    with on_device(q):
        head = 0
        for inputs, own, where in _runs(q, k, v, selected, cu_seqlens_q, cu_seqlens_k, patterns, causal):
            mine = slice(head * group, head * group + inputs.q.shape[2])
            head += inputs.k.shape[2]
            part = [None if x is None else _flat(x[:, :, mine]) for x in (out, d_out, lse, d_lse)]
            assert part[0] is not None
            assert part[1] is not None
            assert part[2] is not None
            d_own = row_major(part[1])
            by_head = backward_rows(part[0], d_own, part[2], part[3])
            rows = (
                by_head[0][0, :, : d_own.shape[1]].t().contiguous(),
                by_head[1][0, :, : d_own.shape[1]].t().contiguous(),
            )
            grads = backward_blocks(inputs, d_own, rows, settle(own, where), where, scale, capability_of(q))
            shapes = (q.shape[:2], k.shape[:2], k.shape[:2])
            found.append(tuple(x.view(*shape, *x.shape[2:]) for x, shape in zip(grads, shapes, strict=True)))
        dq, dk, dv = found[0] if len(found) == 1 else (torch.cat(parts, 2) for parts in zip(*found, strict=True))
        if not whole:
            return dq, dk, dv, q.new_empty(0), q.new_empty(0)
        d_q, d_k, d_v, d_extra_k, d_extra_v = backward_pass(
            d_out, d_lse, q, k, v, out, lse, extra_k, extra_v, cu_seqlens_q, cu_seqlens_k, patterns, causal, scale,
            "triton", [True, True, extra_k is not None],
        )  # fmt: skip
        return d_q.add_(dq), d_k.add_(dk), d_v.add_(dv), d_extra_k, d_extra_v


_backward_operator = torch.library.custom_op(
    "sparse_attn::fused_selected_attention_backward", _backward, mutates_args=()
)


@_backward_operator.register_fake
def _(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    selected: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    patterns: str,
    causal: bool,
    scale: float,
    whole: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    extra = [q.new_empty(0 if x is None or not whole else x.shape) for x in (extra_k, extra_v)]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), extra[0], extra[1]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, extra_k, extra_v, selected, cu_seqlens_q, cu_seqlens_k, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, *output, extra_k, extra_v, selected, cu_seqlens_q, cu_seqlens_k)
    ctx.set_materialize_grads(False)


def _operator_gradients(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, torch.ops.sparse_attn.fused_selected_attention_backward, d_out, d_lse)


def _gradients(
    ctx: Any, run: Callable[..., tuple[Tensor, ...]], d_out: Tensor | None, d_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    if d_out is None and d_lse is None:
        return (None,) * 12
    saved = ctx.saved_tensors
    d_out = torch.zeros_like(saved[3]) if d_out is None else d_out
    found = run(d_out, d_lse, *saved, *ctx.rest)
    gradients = [gradient if need else None for gradient, need in zip(found, ctx.needs_input_grad[:5], strict=True)]
    return (*gradients, *(None,) * 7)


_operator.register_autograd(_operator_gradients, setup_context=_setup_context)


class _FusedSelectedAttention(torch.autograd.Function):
    """The operator's autograd, without the operator."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output = _forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _gradients(ctx, _backward, d_out, d_lse)


def _runs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    patterns: str,
    causal: bool,
) -> Iterator[tuple[Inputs, Tensor, Places]]:
    """For each run of KV heads that share a pattern: its tensors, all examples one after the other; its choice; its places."""
    batch, n_queries, n_keys = q.shape[0], q.shape[1], k.shape[1]
    bounds: tuple[tuple[int, ...] | None, ...] = (boundaries(cu_seqlens_q), boundaries(cu_seqlens_k))
    if batch != 1:
        bounds = tuple(tuple(n * count for n in range(batch + 1)) for count in (n_queries, n_keys))
    group, shared = q.shape[2] // k.shape[2], selected.shape[2] // k.shape[2]
    most = most_keys(capability_of(q), q.shape[-1], q.dtype)
    chosen = _flat(selected)[0].to(torch.int32)
    runs = [(pattern, len(list(run))) for pattern, run in groupby(parse_heads(patterns))]
    ends = [0] if "\n" in patterns else [0, k.shape[2]]
    if "\n" in patterns:
        for _, count in runs:
            ends.append(ends[-1] + count)
    for (pattern, _), (begin, end) in zip(runs, pairwise(ends), strict=True):
        where = places(pattern, batch * n_queries, batch * n_keys, causal, *bounds, selected.shape[3], most)
        keep_if_captured(where.where, q)
        if where.n_tiles != len(chosen):
            raise ValueError(
                f"selected must have {where.n_tiles // max(batch, 1)} rows for {pattern!r}, got {len(chosen) // max(batch, 1)}"
            )
        inputs = Inputs(
            row_major(_flat(q[:, :, begin * group : end * group])),
            row_major(_flat(k[:, :, begin:end])),
            row_major(_flat(v[:, :, begin:end])),
        )
        yield inputs, chosen[:, begin * shared : end * shared], where


def _from_blocks(where: Places, n_queries: int) -> bool:
    """Whether to go from blocks to queries: where few queries choose together, and each block is chosen by several."""
    return where.rows <= 2 and n_queries >= 16 and n_queries * where.slots >= 8 * where.n_blocks


def _flat(tensor: Tensor) -> Tensor:
    """All examples one after the other, as one."""
    return tensor if tensor.shape[0] == 1 else tensor.flatten(0, 1)[None]
