"""What a decoding model keeps of the tokens it has read."""

from .anchors import AnchorCache
from .attention import AttentionCache

__all__ = ["AnchorCache", "AttentionCache"]
