"""Patterns as text: ``window(2048) | sinks(4)``, the form that ``repr`` prints and the command line takes."""

from __future__ import annotations

import ast
import inspect
import re
from functools import lru_cache

from . import chosen, covering, hashed, terms
from .pattern import Pattern

_GLOBAL = "global_keyword"
_TERMS: dict[str, type[terms.Term]] = {
    "window": terms.Window,
    "chunked": terms.Chunked,
    "full": terms.Full,
    "dilated": terms.Dilated,
    "strided": terms.Strided,
    "sinks": terms.Sinks,
    "global": terms.Global,
    "random": terms.Random,
    "anchors": terms.Anchors,
    "anchortree": terms.AnchorTree,
    "topblocks": chosen.TopBlocks,
    "coverblocks": covering.CoverBlocks,
    "verticalslash": covering.VerticalSlash,
    "hashed": hashed.Hashed,
}

_EXAMPLES = {  # where one number does not do, or would mislead
    "full": "full()",
    "dilated": "dilated(256, 4)",
    "sinks": "sinks(4)",
    "global": "global((0, 100))",
    "random": "random(3)",
    "anchortree": "anchortree(3)",
    "topblocks": "topblocks(16)",
    "coverblocks": "coverblocks(0.94)",
    "verticalslash": "verticalslash(0.9)",
    "hashed": "hashed(2, 64)",
}


def parse(text: str) -> Pattern:
    """The pattern that a text describes: terms, joined by ``|``, optionally cut by ``.within(window(n))``.

    A term is written as its class is called: ``window(64, right=0)``, ``dilated(8, 4)``, ``strided(32, offset=31)``,
    ``global((0, 100))``, ``random(3, seed=1)``, ``topblocks(16, rows=64)``, ``full()``. Capitals do
    not matter; nothing is evaluated as Python.

    Raises:
        ValueError: unknown term, wrong arguments, or text that is not a pattern; names the part that is wrong.

    >>> parse("window(2048) | sinks(4)")
    window(2048) | sinks(4)
    >>> parse("(window(64) | global((0, 9))).within(window(128))")
    (window(64) | global((0, 9))).within(window(128))
    """
    if not isinstance(text, str):
        raise ValueError(f"pattern must be text such as 'window(2048) | sinks(4)', got {text!r}")
    # `global` is a keyword of the grammar that reads the text, so it gets another name for the reading.
    readable = re.sub(r"\bglobal\b(?=\s*([(|)]|$))", _GLOBAL, text.strip(), flags=re.IGNORECASE)
    shown = text if len(text) <= 200 else text[:200] + "..."
    try:
        tree = ast.parse(readable, mode="eval").body
        return _build(tree, shown)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(
            f"pattern text {shown!r} cannot be read: expected terms joined by '|', e.g. 'window(2048) | sinks(4)'"
        ) from None


def _build(node: ast.expr, text: str) -> Pattern:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _build(node.left, text) | _build(node.right, text)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.lower() == "within":
        if len(node.args) != 1 or node.keywords:
            raise ValueError(f"pattern text {text!r}: within takes one window, e.g. .within(window(4096))")
        window = _build(node.args[0], text)
        if not isinstance(window, terms.Window):
            raise ValueError(f"pattern text {text!r}: within takes a window, got {window!r}")
        return _build(node.func.value, text).within(window)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _term(node, node.func.id, text)
    if isinstance(node, ast.Name):
        raise ValueError(f"pattern text {text!r}: {_lacking(node.id)}")
    raise ValueError(f"pattern text {text!r}: expected terms joined by '|', got {ast.unparse(node)!r}")


def _lacking(name: str) -> str:
    """What is wrong with a bare name."""
    known = "global" if name == _GLOBAL else name.lower()
    if known == "auto":
        return (
            f"auto is no pattern of its own: to sparsify, generate and eval it stands for {covering.auto()!r}, with another "
            "share for another coverage"
        )
    if known not in _TERMS:
        return f"expected a term with its arguments, e.g. 'full()', got {name!r}"
    return f"{known} lacks its arguments: write e.g. {_EXAMPLES.get(known, f'{known}(64)')}"


def _term(node: ast.Call, name: str, text: str) -> Pattern:
    name = "global" if name == _GLOBAL else name.lower()
    if name not in _TERMS:
        raise ValueError(f"pattern text {text!r}: unknown term {name!r}; known terms: {', '.join(_TERMS)}")
    term = _TERMS[name]
    try:
        args = [ast.literal_eval(arg) for arg in node.args]
        options = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (ValueError, TypeError):
        raise ValueError(f"pattern text {text!r}: the arguments of {name} must be plain numbers") from None
    if len(options) < len(node.keywords):
        raise ValueError(f"pattern text {text!r}: {name} is given an argument twice")
    if "" in options or any(isinstance(value, dict | set) for value in (*args, *options.values())):
        raise ValueError(f"pattern text {text!r}: the arguments of {name} must be numbers, or lists of them")
    signature = inspect.signature(term)
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        shown = ", ".join(str(parameter).split(":")[0] for parameter in signature.parameters.values())
        raise ValueError(f"pattern text {text!r}: {error} (it is {name}({shown}))") from None
    try:
        return term(*args, **options)
    except ValueError as error:
        raise ValueError(f"pattern text {text!r}: {error}") from None


@lru_cache(maxsize=64)
def parse_heads(text: str) -> tuple[Pattern, ...]:
    """The patterns of a text with a line each, as operators of PyTorch take them: one for all KV heads, or one a head.

    >>> parse_heads("window(8)\\nsinks(4)")
    (window(8), sinks(4))
    """
    return tuple(map(parse, text.split("\n")))
