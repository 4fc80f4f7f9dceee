"""Modules: what is learned around attention, and attention layers made of it."""

from .anchors import AnchorKeys
from .attention import SparseSelfAttention
from .rope import rotate
from .router import Route, Router
from .selector import BlockSelector

__all__ = ["AnchorKeys", "BlockSelector", "Route", "Router", "SparseSelfAttention", "rotate"]
