"""`tile_attention`: attention over the tiles of a schedule, forward and backward."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backward import backward
from .forward import Inputs, Sums, forward
from .tiles import Assignment


def tile_attention(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    assignments: Sequence[Assignment],
    *,
    scale: float,
    extra_k: Float[Tensor, "B E Hkv D"] | None = None,
    extra_v: Float[Tensor, "B E Hkv D"] | None = None,
) -> tuple[Float[Tensor, "B T Hq D"], Float[Tensor, "B T Hq"]]:
    """Softmax attention of each query row over the keys that its row blocks name.

    out[b,t,h] = softmax(scale * q[b,t,h] @ k[b,J,g].T) @ v[b,J,g]
    g = h // (Hq // Hkv);  J = the keys named for row t by the schedule of (b, g)

    Args:
        q, k, v: float16, bfloat16, float32 or float64 tensors on the CPU, of any strides.
        assignments: Schedules; each KV head of each example stands in at most one of them.
        scale: Logit multiplier.
        extra_k, extra_v: The keys and values of pieces with source `EXTRA`.

    Returns:
        The output in q's dtype, and the natural-log LSE; sums are held in float32 (float64 inputs: in float64), which
        is also the LSE's dtype. A row that sees no key has output 0, LSE -inf and zero gradients.

    Gradients flow to q, k, v, extra_k and extra_v, from both results, once (not twice). Time is linear in rows times
    keys of the schedule; memory is that of the results and a few MiB for each thread.
    Source: Dao et al. 2022, arXiv:2205.14135 (tiling, recomputation from row sums).
    """
    return TileAttention.apply(q, k, v, extra_k, extra_v, tuple(assignments), scale)


class TileAttention(torch.autograd.Function):
    """`tile_attention` with its own backward pass, which saves nothing but inputs, output and two numbers for each row."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_k: Tensor | None,
        extra_v: Tensor | None,
        assignments: tuple[Assignment, ...],
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        out, sums = forward(Inputs(q, k, v, extra_k, extra_v, scale), assignments)
        ctx.save_for_backward(q, k, v, extra_k, extra_v, out, sums.top, sums.total)
        ctx.assignments, ctx.scale = assignments, scale
        ctx.set_materialize_grads(False)
        return out, sums.lse()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, extra_k, extra_v, out, top, total = ctx.saved_tensors
        inputs, sums = Inputs(q, k, v, extra_k, extra_v, ctx.scale), Sums(top, total)
        grads = backward(inputs, out, sums, d_out, d_lse, ctx.needs_input_grad[:5], ctx.assignments)
        return *grads, None, None
