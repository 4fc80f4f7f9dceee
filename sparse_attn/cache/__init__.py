"""What a decoding model keeps of the tokens it has read."""

from .anchors import AnchorCache
from .attention import AttentionCache
from .blocks import BlockCache

__all__ = ["AnchorCache", "AttentionCache", "BlockCache"]
