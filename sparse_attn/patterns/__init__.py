"""What may be attended: patterns, their terms, and the arithmetic on them. Needs numpy only, never torch."""

from .chosen import Hashed, TopBlocks
from .layout import Layout
from .parse import parse
from .pattern import Pattern
from .reach import Reach
from .terms import Anchors, Chunked, Dilated, Full, Global, Random, Sinks, Strided, Window

__all__ = [
    "Anchors",
    "Chunked",
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
    "Window",
    "parse",
]
