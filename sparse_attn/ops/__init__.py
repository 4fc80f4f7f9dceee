"""The public operations: they check their arguments, choose an implementation, and carry the gradients."""

from .attention import attention
from .merge import merge

__all__ = ["attention", "merge"]
