"""What may be attended: patterns, their terms, and the arithmetic on them. Needs numpy only, never torch."""

from .layout import Layout
from .parse import parse
from .pattern import Pattern
from .reach import Reach
from .terms import Anchors, AnchorTree, Chunked, Dilated, Full, Global, Random, Sinks, Strided, Window

__all__ = [
    "AnchorTree",
    "Anchors",
    "Chunked",
    "Dilated",
    "Full",
    "Global",
    "Layout",
    "Pattern",
    "Random",
    "Reach",
    "Sinks",
    "Strided",
    "Window",
    "parse",
]
