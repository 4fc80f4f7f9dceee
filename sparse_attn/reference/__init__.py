"""Eager oracles, one per operation: slow, plain, float64-capable, sharing no code with what they judge."""

from .anchor_tree import tree_rows
from .anchors import anchor_rows
from .attention import masked_attention
from .compressed_attention import coarse_attention
from .hashed import hashed_attention, hashed_mask
from .merge import merge_partial
from .selected_attention import selected_attention

__all__ = [
    "anchor_rows",
    "coarse_attention",
    "hashed_attention",
    "hashed_mask",
    "masked_attention",
    "merge_partial",
    "selected_attention",
    "tree_rows",
]
