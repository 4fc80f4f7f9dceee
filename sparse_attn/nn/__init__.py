"""Modules: what is learned around attention, and attention layers made of it."""

from .anchor_tree import AnchorTreeKeys
from .anchors import AnchorKeys
from .attention import SparseSelfAttention
from .rope import rotate

__all__ = ["AnchorKeys", "AnchorTreeKeys", "SparseSelfAttention", "rotate"]
