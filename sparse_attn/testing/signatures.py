"""Shapes in signatures, checked while tests run: a function that returns must have kept its word.

``jaxtyping.install_import_hook(rooms, "sparse_attn.testing.signatures.check_on_return")``, called before the rooms are
imported, wraps all their functions.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_CONF = BeartypeConf(is_pep484_tower=True)  # an int is a fine float, as for mypy


def check_on_return(function: Callable[..., Any]) -> Callable[..., Any]:
    """A type checker for jaxtyping's hook that looks at arguments and result once the result is there.

    jaxtyping checks twice, the arguments before the call and everything after it. The first check would speak before
    the ``ValueError`` that a public function owes its callers, and no test could see that error; so it is left out.
    A bad argument still cannot pass: if the function returns all the same, the second check fails.
    """
    only_arguments = function.__annotations__.get("return", Any) is Any
    return function if only_arguments else beartype(conf=_CONF)(function)
