"""The public operations: they check their arguments, choose an implementation, and carry the gradients."""

from .anchor_tree import TreeWeights, tree_keys
from .anchors import Anchored, AnchorState, AnchorWeights, anchor_keys, anchor_scan, pool_blocks, read_anchors
from .attention import attention
from .compressed_attention import compressed_attention
from .merge import merge
from .select_blocks import select_blocks
from .selected_pairs import selected_pairs

__all__ = [
    "AnchorState",
    "AnchorWeights",
    "Anchored",
    "TreeWeights",
    "anchor_keys",
    "anchor_scan",
    "attention",
    "compressed_attention",
    "merge",
    "pool_blocks",
    "read_anchors",
    "select_blocks",
    "selected_pairs",
    "tree_keys",
]
