"""Attention over blocks that the content chooses, on a GPU, forward and backward, in Triton.

Where many queries choose together, a tile of them walks along its blocks. Where each chooses for itself, the choice is
transposed, and each block's keys meet the queries that chose it, gathered into dense tiles. Keys that a static part of the
pattern names are left out: they count in the pass over that part, which `fused_union_attention` takes together with this.
"""

from .registration import fused_selected_attention, fused_union_attention
from .select import MOST_BLOCKS, best_blocks, select_tiles

__all__ = ["MOST_BLOCKS", "best_blocks", "fused_selected_attention", "fused_union_attention", "select_tiles"]
