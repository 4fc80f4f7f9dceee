"""Modules: what is learned around attention, and attention layers made of it."""

from .anchors import AnchorKeys
from .attention import SparseSelfAttention
from .rope import rotate

__all__ = ["AnchorKeys", "SparseSelfAttention", "rotate"]
