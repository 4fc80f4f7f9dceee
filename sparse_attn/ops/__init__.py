"""The public operations: they check their arguments, choose an implementation, and carry the gradients."""

from .anchors import AnchorState, AnchorWeights, anchor_keys, anchor_scan, pool_blocks
from .attention import attention
from .chosen_pairs import chosen_pairs
from .compressed_attention import compressed_attention
from .merge import merge
from .select_blocks import select_blocks

__all__ = [
    "AnchorState",
    "AnchorWeights",
    "anchor_keys",
    "anchor_scan",
    "attention",
    "chosen_pairs",
    "compressed_attention",
    "merge",
    "pool_blocks",
    "select_blocks",
]
