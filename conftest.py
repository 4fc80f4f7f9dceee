"""What every test and every docstring's example runs under.

- Shapes in signatures are checked at each call: the import hook below turns the jaxtyping annotations into checks.
- Uninitialised memory is NaN, so that an element that nobody wrote cannot pass for a result.
- Inputs are random, but a test that fails fails again: each starts from the same seed.
- An example in a docstring may use ``q``, ``k``, ``v`` and what ``sparse_attn`` exports without creating them.
"""

import importlib.util
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parent / "sparse_attn"

# Triton compiles a jit function from its own source, which a wrapper would hide.
UNCHECKED_ROOMS = {"kernels"}


def _check_shapes_in_signatures() -> None:
    from jaxtyping import install_import_hook

    rooms = [room.name for room in pkgutil.iter_modules([str(PACKAGE)]) if room.name not in UNCHECKED_ROOMS]
    install_import_hook([f"sparse_attn.{room}" for room in rooms], "beartype.beartype")


_check_shapes_in_signatures()


@pytest.fixture(autouse=True)
def _poisoned_and_seeded() -> Iterator[None]:
    import torch

    from sparse_attn.testing import poisoned_allocations

    torch.manual_seed(0)
    with poisoned_allocations():
        yield


@pytest.fixture(autouse=True)
def _examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    if not isinstance(request.node, pytest.DoctestItem):
        return
    import torch

    import sparse_attn

    B, T, Hq, Hkv, D = 1, 300, 4, 2, 64
    doctest_namespace.update({name: getattr(sparse_attn, name) for name in sparse_attn.__all__})
    doctest_namespace.update(
        q=torch.randn(B, T, Hq, D),
        k=torch.randn(B, T, Hkv, D),
        v=torch.randn(B, T, Hkv, D),
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
