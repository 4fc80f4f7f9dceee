"""sparse-attn: long-context attention through patterns.

    >>> from sparse_attn import Sinks, Window
    >>> pattern = Window(2048) | Sinks(4)
    >>> pattern.pairs(131_072) / Window(131_072).pairs(131_072)  # share of dense attention's pairs  # doctest: +ELLIPSIS
    0.031...

`attention` and `merge` load torch when they are first asked for; patterns need numpy only.
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .patterns import (
    Anchors,
    AnchorTree,
    Chunked,
    CoverBlocks,
    Dilated,
    Full,
    Global,
    Hashed,
    Pattern,
    Random,
    Sinks,
    Strided,
    TopBlocks,
    VerticalSlash,
    Window,
    parse,
)

if TYPE_CHECKING:
    from .ops import attention, merge, select_blocks

__all__ = [
    "AnchorTree",
    "Anchors",
    "Chunked",
    "CoverBlocks",
    "Dilated",
    "Full",
    "Global",
    "Hashed",
    "Pattern",
    "Random",
    "Sinks",
    "Strided",
    "TopBlocks",
    "VerticalSlash",
    "Window",
    "__version__",
    "attention",
    "merge",
    "parse",
    "select_blocks",
]


def __getattr__(name: str) -> Any:
    if name in ("attention", "merge", "select_blocks"):
        from . import ops

        return getattr(ops, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
