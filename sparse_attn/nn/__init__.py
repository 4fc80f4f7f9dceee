"""Modules: what is learned around attention, and attention layers made of it."""

from .anchors import AnchorKeys
from .attention import SparseSelfAttention
from .rope import rotate
from .selector import BlockSelector

__all__ = ["AnchorKeys", "BlockSelector", "SparseSelfAttention", "rotate"]
