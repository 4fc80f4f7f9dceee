"""Modules: what is learned around attention, and attention layers made of it."""

from .anchor_tree import AnchorTreeKeys
from .anchors import AnchorKeys
from .attention import SparseSelfAttention
from .rope import rotate
from .routed_attention import RoutedSelfAttention, budget_terms
from .router import Route, Router
from .selection_loss import selection_loss
from .selector import BlockSelector
from .shared_attention import SharedSelfAttention

__all__ = [
    "AnchorKeys",
    "AnchorTreeKeys",
    "BlockSelector",
    "Route",
    "RoutedSelfAttention",
    "Router",
    "SharedSelfAttention",
    "SparseSelfAttention",
    "budget_terms",
    "rotate",
    "selection_loss",
]
