"""The command `sparse-attn`: thin commands over the library. Heavy imports stand inside functions: `show` needs no torch."""

from .app import main

__all__ = ["main"]
