"""Learned anchors on a GPU: blocks pooled, then read by a running softmax; forward and backward, in Triton.

Six kernels. `pool` reads every key and value once and leaves a key, a value and R logits a block; `scan` walks along the
blocks, one program for a row of summaries. On the way back `backward_chunks` walks along chunks of blocks side by side,
`backward_carry` along the chunks, `backward_scan` along each chunk again from what it gets from behind; `backward_pool` hands
gradients to the tokens.
No float is added to by two programs: gradients repeat to the bit.
"""

from .registration import fused_anchors

__all__ = ["fused_anchors"]
