"""What may be attended: patterns, their terms, and the arithmetic on them. Needs numpy only, never torch."""

from .chosen import TopBlocks
from .covering import CoverBlocks, VerticalSlash
from .hashed import Hashed
from .layout import Layout
from .parse import parse
from .pattern import Pattern
from .reach import Reach
from .terms import Anchors, AnchorTree, Chunked, Dilated, Full, Global, Random, Sinks, Strided, Window

__all__ = [
    "AnchorTree",
    "Anchors",
    "Chunked",
    "CoverBlocks",
    "Dilated",
    "Full",
    "Global",
    "Hashed",
    "Layout",
    "Pattern",
    "Random",
    "Reach",
    "Sinks",
    "Strided",
    "TopBlocks",
    "VerticalSlash",
    "Window",
    "parse",
]
