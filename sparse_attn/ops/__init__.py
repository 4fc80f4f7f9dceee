"""The public operations: they check their arguments, choose an implementation, and carry the gradients."""

from .attention import attention
from .merge import merge
from .select_blocks import select_blocks

__all__ = ["attention", "merge", "select_blocks"]
