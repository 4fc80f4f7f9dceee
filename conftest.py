"""What every test and every docstring's example runs under.

- Shapes in signatures are checked: the import hook below turns jaxtyping annotations into checks of each call.
- Uninitialised memory is NaN, so that an element that nobody wrote cannot pass for a result.
- Random numbers start from the same seed in each test, so that a test that fails fails again.
- Property tests have no deadline: a loaded machine is no failure.
- Without a GPU the kernels run in Triton's interpreter, on CPU tensors and small shapes.
- An example in a docstring has ``q``, ``k``, ``v`` and the package's exports without creating them.
"""

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

from sparse_attn.testing.signatures import check_on_return

# Rooms of tensors. Not `kernels`: Triton compiles a jit function from its own source, which a wrapper would hide.
CHECKED_ROOMS = ["cache", "cpu", "hf", "models", "nn", "ops", "reference"]

collect_ignore_glob = ["sparse_attn/serve/lm_eval/*"]  # needs an optional package, and shows no examples

KEPT_ON_A_GPU = 1 << 30  # bytes of freed memory that a process keeps between tests: others run on the same card

CHECKER = f"{check_on_return.__module__}.{check_on_return.__name__}"

install_import_hook([f"sparse_attn.{room}" for room in CHECKED_ROOMS], CHECKER)


hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, as transformers does: here is early enough


@pytest.fixture(autouse=True)
def _poisoned_and_seeded() -> Iterator[None]:
    from sparse_attn.testing import poisoned_allocations

    torch.manual_seed(0)
    with poisoned_allocations():
        yield
    if torch.cuda.is_available() and torch.cuda.memory_reserved() > KEPT_ON_A_GPU:
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def _names_for_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    if not isinstance(request.node, pytest.DoctestItem):
        return
    import sparse_attn

    B, T, Hq, Hkv, D = 1, 300, 4, 2, 64
    doctest_namespace.update({name: getattr(sparse_attn, name) for name in sparse_attn.__all__})
    doctest_namespace.update(
        q=torch.randn(B, T, Hq, D),
        k=torch.randn(B, T, Hkv, D),
        v=torch.randn(B, T, Hkv, D),
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
