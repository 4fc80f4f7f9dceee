"""Helper in Triton: one tile of keys taken into a running softmax."""

import triton
import triton.language as tl


@triton.jit
def online_softmax_step(
    q, k, v, keep, acc, top, total, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Take keys k and values v into (acc, top, total), the output, maximum and sum of each row so far.

    Logits are in base 2: `scale` carries log2(e), and is not negative. A row whose keys are all hidden keeps its state.
    """
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        logits = tl.where(keep, logits * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # -inf minus -inf would be NaN
        weights = tl.exp2(logits - base[:, None])
        correction = tl.exp2(top - base)
    else:
        new_top = tl.maximum(top, tl.max(logits, 1) * scale)
        weights = tl.exp2(logits * scale - new_top[:, None])
        correction = tl.exp2(top - new_top)
    total = total * correction + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * correction[:, None], input_precision=PRECISION)
    return acc, new_top, total
