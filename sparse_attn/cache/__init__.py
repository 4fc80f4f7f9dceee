"""What a decoding model keeps of the tokens it has read."""

from .anchor_tree import AnchorTreeCache
from .anchors import AnchorCache
from .attention import AttentionCache
from .blocks import BlockCache

__all__ = ["AnchorCache", "AnchorTreeCache", "AttentionCache", "BlockCache"]
