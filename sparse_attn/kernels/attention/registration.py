"""The kernels as operators of PyTorch, so that compilation, CUDA graphs, checkpointing and autograd treat them as its own.

An operator takes tensors and plain values: patterns travel as their text, document boundaries as integer tensors. What it
needs of both (the geometry and its tables) is made at the first call and kept; later calls never wait for the device.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ...patterns.parse import parse_heads
from .backward_columns import add_backward_columns
from .backward_extra import backward_extra
from .backward_keys import backward_keys
from .backward_queries import backward_queries
from .backward_rows import backward_rows
from .forward import forward, forward_kernel
from .geometry import Geometry, geometry
from .hopper import keys_kernel, makes_columns, refusal
from .launch import Gradients, Inputs
from .tiles import Capability, row_major

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_CAPTURED: list[Geometry] = []  # a CUDA graph reads their tables at every replay: they live as long as the process


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    patterns: str,
    *,
    causal: bool,
    scale: float,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    kernels: str = "any",
) -> tuple[Tensor, Tensor]:
    """Softmax attention through patterns, with its LSE; differentiable in both results.

    Args:
        q, k, v: ``[B, T, Hq, D]``, ``[B, S, Hkv, D]``; packed documents have B = 1.
        patterns: The text of one pattern, or of one for each KV head, a line each.
        cu_seqlens_q, cu_seqlens_k: Document boundaries, both or none. From a CUDA tensor they are read once.
        extra_k, extra_v: ``[B, rows, R, Hkv, D]``, where the patterns have anchors.
        kernels: "triton" (the portable ones), "hopper", or "any": Hopper's where they serve the call.

    Raises:
        NotImplementedError: dtype, head dim, device or GPU that the kernels do not serve.
    """
    arguments = (q, k, v, extra_k, extra_v, cu_seqlens_q, cu_seqlens_k, patterns, causal, scale, kernels)
    plain = type(q) in (Tensor, torch.nn.Parameter)  # a subclass has ways of its own through the dispatcher
    if not plain or torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return torch.ops.sparse_attn.fused_attention(*arguments)  # type: ignore[no-any-return]
    # Eagerly the same without the operator's way through the dispatcher, which takes as long as a short call itself.
    if not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
        return forward_pass(*arguments)
    return _FusedAttention.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]


def check_served(q: Tensor) -> None:
    if q.dtype not in _DTYPES:
        raise NotImplementedError(
            f"implementation 'triton' takes float16, bfloat16 and float32, got {q.dtype}; use 'reference'"
        )
    if q.shape[-1] > 256:
        raise NotImplementedError(f"implementation 'triton' takes head dims to 256, got {q.shape[-1]}; use 'reference'")
    if q.device.type != "cuda" and not _interpreted():
        raise NotImplementedError(f"implementation 'triton' takes CUDA tensors, got q on {q.device}; use 'cpu'")
    if q.device.type == "cuda" and torch.cuda.get_device_capability(q.device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(q.device)
        raise NotImplementedError(
            f"implementation 'triton' needs compute capability 8.0 or later, {torch.cuda.get_device_name(q.device)} has "
            f"{major}.{minor}; use 'reference'"
        )


def _check_rows(extra_k: Tensor | None, where: Geometry) -> None:
    """Extra keys are read by row: where boundaries come from the device, their number is known here only."""
    if where.anchors is None or extra_k is None:
        return
    rows = sum(-(-document.n_keys // where.anchors.block) for document in where.documents)
    if extra_k.shape[1] != rows:
        raise ValueError(
            f"extra_k must have {rows} rows (ceil(S / {where.anchors.block}) for each document), got {extra_k.shape[1]}"
        )


def _interpreted() -> bool:
    """Whether Triton interprets its kernels, on CPU tensors, as if on Hopper."""
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(forward_kernel, InterpretedFunction)


def forward_pass(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    patterns: str,
    causal: bool,
    scale: float,
    kernels: str = "any",
) -> tuple[Tensor, Tensor]:
    check_served(q)
    with on_device(q):
        parts = []
        for heads, where in _by_heads(q, k, cu_seqlens_q, cu_seqlens_k, patterns, causal):
            _check_rows(extra_k, where)
            inputs = _inputs(q, k, v, extra_k, extra_v, heads)
            run = hopper_forward if _on_hopper(inputs, where, scale, kernels) else forward
            parts.append(run(inputs, where, scale, capability_of(q)))
    return _joined([part[0] for part in parts]), _joined([part[1] for part in parts])


_operator = torch.library.custom_op("sparse_attn::fused_attention", forward_pass, mutates_args=())


@_operator.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    patterns: str,
    causal: bool,
    scale: float,
    kernels: str = "any",
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


def backward_pass(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    patterns: str,
    causal: bool,
    scale: float,
    kernels: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, extra_k, extra_v; those that are not wanted (q; k or v; extra keys) are empty."""
    capability = capability_of(q)
    found: list[tuple[Tensor, ...]] = []
    with on_device(q):
        for heads, where in _by_heads(q, k, cu_seqlens_q, cu_seqlens_k, patterns, causal):
            inputs = _inputs(q, k, v, extra_k, extra_v, heads)
            group = q.shape[2] // k.shape[2]
            own = slice(heads.start * group, heads.stop * group)
            parts = [d_out, out, lse] if d_lse is None else [d_out, out, lse, d_lse]
            if heads.stop - heads.start < k.shape[2]:
                parts = [x[:, :, own] for x in parts]
            d_own = row_major(parts[0])
            delta, lse2 = backward_rows(parts[1], d_own, *parts[2:])
            gradients = Gradients(d_own, lse2, delta)
            hopper = _on_hopper(inputs, where, scale, kernels)
            if wanted[0]:
                run = hopper_backward_queries if hopper else backward_queries
                dq = run(inputs, gradients, where, scale, capability)
            else:
                dq = q.new_empty(0)
            if wanted[1]:
                run_keys = hopper_backward_keys if hopper else backward_keys
                dk, dv = run_keys(inputs, gradients, where, scale, capability)
                own_columns = hopper and makes_columns(q.shape[-1])
                add_columns = hopper_add_backward_columns if own_columns else add_backward_columns
                add_columns(dk, dv, inputs, gradients, where, scale, capability)
            else:
                dk, dv = q.new_empty(0), q.new_empty(0)
            if wanted[2] and extra_k is not None:
                d_extra_k, d_extra_v = (
                    x.view(*extra_k.shape[:3], *x.shape[2:])
                    for x in backward_extra(inputs, gradients, where, scale, capability)
                )
            else:
                d_extra_k, d_extra_v = q.new_empty(0), q.new_empty(0)
            found.append((dq, dk, dv, d_extra_k, d_extra_v))
    dims = (2, 2, 2, 3, 3)
    whole = [_joined(list(parts), dim) for parts, dim in zip(zip(*found, strict=True), dims, strict=True)]
    return whole[0], whole[1], whole[2], whole[3], whole[4]


_backward_operator = torch.library.custom_op("sparse_attn::fused_attention_backward", backward_pass, mutates_args=())


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
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    patterns: str,
    causal: bool,
    scale: float,
    kernels: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    flags = (wanted[0], wanted[1], wanted[1], wanted[2] and extra_k is not None, wanted[2] and extra_k is not None)
    shapes = [
        tensor.shape if tensor is not None and flag else (0,)
        for tensor, flag in zip((q, k, v, extra_k, extra_v), flags, strict=True)
    ]
    made = [q.new_empty(shape) for shape in shapes]
    return made[0], made[1], made[2], made[3], made[4]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, extra_k, extra_v, cu_seqlens_q, cu_seqlens_k, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, *output, extra_k, extra_v, cu_seqlens_q, cu_seqlens_k)
    ctx.set_materialize_grads(False)


def _operator_gradients(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, torch.ops.sparse_attn.fused_attention_backward, d_out, d_lse)


def _gradients(
    ctx: Any, run: Callable[..., tuple[Tensor, ...]], d_out: Tensor | None, d_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    if d_out is None and d_lse is None:
        return (None,) * 11
    saved = ctx.saved_tensors
    d_out = torch.zeros_like(saved[3]) if d_out is None else d_out
    wanted = [needs[0], needs[1] or needs[2], needs[3] or needs[4]]
    found = run(d_out, d_lse, *saved, *ctx.rest, wanted)
    gradients = [gradient if need else None for gradient, need in zip(found, needs[:5], strict=True)]
    return (*gradients, None, None, None, None, None, None)


_operator.register_autograd(_operator_gradients, setup_context=_setup_context)


class _FusedAttention(torch.autograd.Function):
    """The operator's autograd, without the operator."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output = forward_pass(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _gradients(ctx, backward_pass, d_out, d_lse)


def _by_heads(
    q: Tensor, k: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, patterns: str, causal: bool
) -> Iterator[tuple[slice, Geometry]]:
    """Runs of KV heads that share a pattern, with its geometry."""
    bounds = boundaries(cu_seqlens_q), boundaries(cu_seqlens_k)
    head = 0
    for pattern, run in groupby(parse_heads(patterns)):
        count = len(list(run))
        heads = slice(head, head + count) if "\n" in patterns else slice(0, k.shape[2])
        where = geometry(pattern, q.shape[1], k.shape[1], causal, *bounds)
        keep_if_captured(where, q)
        yield heads, where
        head += count


def keep_if_captured(where: Geometry, q: Tensor) -> None:
    """Keep a geometry, and the tables that it has made, where a CUDA graph is being captured."""
    if q.is_cuda and torch.cuda.is_current_stream_capturing() and where not in _CAPTURED:
        _CAPTURED.append(where)


_BOUNDARIES: dict[int, tuple[Callable[[], Tensor | None], int, tuple[int, ...]]] = {}


def boundaries(lengths: Tensor | None) -> tuple[int, ...] | None:
    """The boundaries as numbers. A CUDA tensor is waited for once, and remembered as long as it lives unchanged."""
    if lengths is None:
        return None
    if not lengths.is_cuda or lengths.is_inference():  # inference tensors do not tell when they change
        return tuple(lengths.tolist())
    known = _BOUNDARIES.get(id(lengths))
    if known is not None and known[0]() is lengths and known[1] == lengths._version:
        return known[2]
    if torch.cuda.is_current_stream_capturing():
        raise NotImplementedError(
            "cu_seqlens_q: a CUDA graph fixes the boundaries that it is captured with, and these are not known yet: call "
            "attention once with this tensor before capturing, or pass a list"
        )
    for name in [name for name, (alive, _, _) in list(_BOUNDARIES.items()) if alive() is None]:
        _BOUNDARIES.pop(name, None)
    read = tuple(lengths.tolist())
    _BOUNDARIES[id(lengths)] = (weakref.ref(lengths), lengths._version, read)
    return read


def _inputs(q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None, heads: slice) -> Inputs:
    """The tensors of some KV heads and of the query heads that share them."""
    group = q.shape[2] // k.shape[2]
    extra = [None if x is None else row_major(x[:, :, :, heads].flatten(1, 2)) for x in (extra_k, extra_v)]
    if extra[0] is not None and extra[1] is not None and extra[0].stride() != extra[1].stride():
        extra = [x.contiguous() for x in extra if x is not None]  # one set of strides serves both
    if heads.stop - heads.start < k.shape[2]:
        q, k, v = q[:, :, heads.start * group : heads.stop * group], k[:, :, heads], v[:, :, heads]
    return Inputs(row_major(q), row_major(k), row_major(v), extra[0], extra[1])


def _joined(parts: list[Tensor], dim: int = 2) -> Tensor:
    """The heads' parts side by side; gradients that nobody wanted are empty, and stay one empty tensor."""
    return torch.cat(parts, dim) if len(parts) > 1 and parts[0].dim() > dim else parts[0]


def _on_hopper(inputs: Inputs, where: Geometry, scale: float, kernels: str) -> bool:
    """Whether Hopper's kernels serve a call.

    Raises:
        NotImplementedError: they are asked for by name and do not.
    """
    if kernels == "triton":
        return False
    reason = refusal(inputs, where, scale, capability_of(inputs.q))
    if reason is not None and kernels == "hopper":
        raise NotImplementedError(f"implementation 'hopper' {reason}; use 'triton'")
    return reason is None


def hopper_forward(inputs: Inputs, where: Geometry, scale: float, capability: Capability) -> tuple[Tensor, Tensor]:
    from .hopper.forward import forward as run  # Gluon is loaded where it runs

    return run(inputs, where, scale)


def hopper_backward_queries(
    inputs: Inputs, gradients: Gradients, where: Geometry, scale: float, capability: Capability
) -> Tensor:
    from .hopper.backward_queries import backward_queries as run

    return run(inputs, gradients, where, scale)


def hopper_backward_keys(
    inputs: Inputs, gradients: Gradients, where: Geometry, scale: float, capability: Capability
) -> tuple[Tensor, Tensor]:
    if keys_kernel(inputs.q.shape[-1]) == "backward_keys_wide":
        from .hopper.backward_keys_wide import backward_keys_wide as run
    else:
        from .hopper.backward_keys import backward_keys as run

    return run(inputs, gradients, where, scale)


def hopper_add_backward_columns(
    dk: Tensor,
    dv: Tensor,
    inputs: Inputs,
    gradients: Gradients,
    where: Geometry,
    scale: float,
    capability: Capability,
) -> None:
    from .hopper.backward_columns import add_backward_columns as run

    run(dk, dv, inputs, gradients, where, scale)


def capability_of(q: Tensor) -> Capability:
    return torch.cuda.get_device_capability(q.device) if q.is_cuda else (9, 0)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
