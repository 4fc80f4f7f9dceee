"""Attention on a GPU through any static pattern, forward and backward, in Triton.

The interval (window, chunk, full) is computed, never stored; columns (sinks, strided, global) are gathered once into short
tensors, so that they are read as dense tiles; listed blocks (random) and extra keys (anchors) are walked entry by entry;
dilated terms are passes of their own over every n-th token, which go on where the pass before them ended.

Head dims are padded to a power of two up to 256; float16, bfloat16, and float32 by exact products, for checking. Runs on
compute capability 8.0 and later; Hopper and later load their tiles through the bulk copy engine.
"""

from .registration import fused_attention

__all__ = ["fused_attention"]
