"""The public operations: they check their arguments, choose an implementation, and carry the gradients."""

from .anchor_tree import TreeWeights, tree_keys
from .anchors import Anchored, AnchorState, AnchorWeights, anchor_keys, anchor_scan, pool_blocks, read_anchors
from .attention import attention
from .merge import merge

__all__ = [
    "AnchorState",
    "AnchorWeights",
    "Anchored",
    "TreeWeights",
    "anchor_keys",
    "anchor_scan",
    "attention",
    "merge",
    "pool_blocks",
    "read_anchors",
    "tree_keys",
]
