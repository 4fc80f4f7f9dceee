"""Attention over an interval of keys and over columns on a GPU, forward and backward, in Triton.

The interval (window, chunk, full) is computed, never stored; columns (sinks, strided) are gathered once into short
tensors, so that they are read as dense tiles.

Head dims are padded to a power of two up to 256; float16, bfloat16, and float32 by exact products, for checking. Runs on
compute capability 8.0 and later; Hopper and later load their tiles through the bulk copy engine.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backward_columns import add_backward_columns
from .backward_keys import backward_keys
from .backward_queries import backward_queries
from .backward_rows import backward_rows
from .forward import forward
from .geometry import Geometry, geometry
from .tiles import row_major

__all__ = ["fused_attention", "geometry"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, where: Geometry, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention over each query's interval and columns, with its LSE; differentiable in both results.

    Args:
        q, k, v: ``[B, T, Hq, D]``, ``[B, S, Hkv, D]``.
        where: The intervals and columns.
        scale: Logit multiplier.

    Raises:
        NotImplementedError: dtype, head dim, device or GPU that the kernels do not serve.
    """
    capability = _supported(q)
    return _FusedAttention.apply(row_major(q), row_major(k), row_major(v), where, scale, capability)


def _supported(q: Tensor) -> tuple[int, int]:
    if q.dtype not in _DTYPES:
        raise NotImplementedError(f"implementation 'triton' takes {_DTYPES}, got {q.dtype}; use 'reference'")
    if q.shape[-1] > 256:
        raise NotImplementedError(f"implementation 'triton' takes head dims to 256, got {q.shape[-1]}; use 'reference'")
    if q.device.type != "cuda":
        from triton.runtime.interpreter import InterpretedFunction

        from .forward import forward_kernel

        if isinstance(forward_kernel, InterpretedFunction):
            return (9, 0)  # the interpreter runs on CPU tensors, as if on Hopper
        raise NotImplementedError(f"implementation 'triton' takes CUDA tensors, got q on {q.device}; use 'cpu'")
    capability = torch.cuda.get_device_capability(q.device)
    if capability < (8, 0):
        raise NotImplementedError(
            f"implementation 'triton' needs compute capability 8.0 or later, {torch.cuda.get_device_name(q.device)} has "
            f"{capability[0]}.{capability[1]}; use 'reference'"
        )
    return capability


def _on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, where: Geometry, scale: float, capability: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        with _on_device(q):
            out, lse = forward(q, k, v, where, scale, capability)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.where, ctx.scale, ctx.capability = where, scale, capability
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        d_out = torch.zeros_like(out) if d_out is None else row_major(d_out)
        dq, dk, dv = None, None, None
        with _on_device(q):
            delta, lse2 = backward_rows(out, d_out, lse, d_lse)
            inputs = (q, k, v, d_out, lse2, delta, ctx.where, ctx.scale, ctx.capability)
            if ctx.needs_input_grad[0]:
                dq = backward_queries(*inputs)
            if any(ctx.needs_input_grad[1:3]):
                dk, dv = backward_keys(*inputs)
                add_backward_columns(dk, dv, *inputs)
        return dq, dk, dv, None, None, None
