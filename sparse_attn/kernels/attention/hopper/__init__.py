"""Attention's interval on Hopper, in Gluon: a warp that loads, warpgroups that compute, products in flight behind softmaxes.

Same mathematics, geometry and tables as the portable kernels beside it, which serve everything that `refusal` names.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..tiles import Capability, can_use_tma

if TYPE_CHECKING:
    from ..geometry import Geometry

HEAD_DIMS = (64, 128)


def refusal(q: Tensor, k: Tensor, v: Tensor, where: "Geometry", scale: float, capability: Capability) -> str | None:
    """The one rule for what these kernels leave to the portable ones: why they do not serve a call, None if they do."""
    if not q.is_cuda or capability != (9, 0):
        return "needs a GPU of compute capability 9.0 (H100, H200)"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, got {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"takes head dims {' and '.join(map(str, HEAD_DIMS))}, got {q.shape[-1]}"
    parts = where.passes or where.rows or where.columns or where.lists or where.anchors
    if where.main is None or not where.has_interval or parts:
        return f"takes patterns of windows, chunks and full() alone, got {where.pattern!r}"
    if scale < 0.0:
        return f"takes scales that are not negative, got {scale}"
    if not can_use_tma(capability, where, where.main, q, k, v):
        return "takes tensors on addresses and strides that are multiples of 16 bytes"
    return None


def is_default(where: "Geometry") -> bool:
    """Whether a call that names no implementation comes here, if it is served.

    Packed documents do not yet: on a GPU few of them have been judged against the oracle.
    """
    return not where.packed
