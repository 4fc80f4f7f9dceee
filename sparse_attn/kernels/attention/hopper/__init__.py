"""Attention on Hopper, in Gluon: a warp that loads, warpgroups that compute, products in flight behind softmaxes.

Same mathematics, geometry and tables as the portable kernels beside it, for an interval with columns and extra keys; those
serve everything that `refusal` names, and make the gradients of extra keys here too, and of wide heads' columns.
"""

from typing import TYPE_CHECKING

import torch

from ..tiles import Capability, can_use_tma

if TYPE_CHECKING:
    from ..geometry import Geometry
    from ..launch import Inputs

HEAD_DIMS = (64, 128, 256)


def refusal(inputs: "Inputs", where: "Geometry", scale: float, capability: Capability) -> str | None:
    """The one rule for what these kernels leave to the portable ones: why they do not serve a call, None if they do."""
    q = inputs.q
    if not q.is_cuda or capability != (9, 0):
        return "needs a GPU of compute capability 9.0 (H100, H200)"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, got {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"takes head dims {', '.join(map(str, HEAD_DIMS))}, got {q.shape[-1]}"
    cut = where.columns > 1 or (where.columns and not where.uncut)
    if where.main is None or not where.has_interval or where.passes or where.rows or where.lists or cut:
        return f"takes windows, chunks and full(), with sinks, strided() and anchors beside them, got {where.pattern!r}"
    if scale <= 0.0:  # keys are hidden before logits are scaled: -inf times 0 is NaN
        return f"takes scales above 0, got {scale}"
    if not can_use_tma(capability, where, where.main, *(tensor for tensor in inputs if tensor is not None)):
        return "takes tensors on addresses and strides that are multiples of 16 bytes"
    return None


def keys_kernel(head_dim: int) -> str:
    """Which kernel makes dk and dv of a call that is served: of wide heads a warpgroup can keep but one of the two sums."""
    return "backward_keys_wide" if head_dim > 128 else "backward_keys"


def makes_columns(head_dim: int) -> bool:
    """Whether the columns' own dk and dv of a call that is served are made here: their kernel keeps both sums."""
    return head_dim <= 128
