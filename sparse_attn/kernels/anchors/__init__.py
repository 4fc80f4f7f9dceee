"""Learned anchors on a GPU: blocks pooled, then read by a running softmax; forward and backward, in Triton.

Four kernels. `pool` reads every key and value once and leaves a key, a value and R logits a block; `scan` walks along the
blocks, one program for a few rows of summaries; `backward_scan` walks back; `backward_pool` hands gradients to the tokens.
No float is added to by two programs: gradients repeat to the bit.
"""

from .registration import fused_anchors

__all__ = ["fused_anchors"]
