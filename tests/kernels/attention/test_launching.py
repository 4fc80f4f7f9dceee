"""A launch that is repeated hands the compiled kernel what Triton's own launch would, and forgets the tensors of the first."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from sparse_attn.kernels.attention import launching
from sparse_attn.kernels.attention.launching import Launch, alike


def _scaled(source, out, n, scale, nothing, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), source.load([0]) * scale)


scaled = JITFunction(_scaled, do_not_specialize=["scale"])  # as `triton.jit` makes it, also where that interprets


class Recorded(CompiledKernel):
    """A kernel as Triton hands it back, which notes what it is launched with."""

    function, packed_metadata = 7, (1,)

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def launch_metadata(self, *_: Any) -> None:
        return None

    @property
    def run(self) -> Any:
        return lambda *arguments: self.launches.append(arguments)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    kernel = Recorded()
    device = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 5,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(type(driver), "active", device)
    monkeypatch.setattr(
        JITFunction, "_do_compile", lambda self, key, *_: self.device_caches[0][0].setdefault(key, kernel)
    )
    scaled.device_caches.clear()
    return kernel


def launch_of(n: int) -> Launch:
    fixed = {"n": n, "nothing": None, "BLOCK": 16, "num_warps": 2}
    return Launch(scaled, (3,), fixed, {"source": lambda x: TensorDescriptor(x, list(x.shape), list(x.stride()), [16])})


def told(arguments: tuple[Any, ...]) -> list[Any]:
    """What a launch says, with addresses for tensors."""
    found: list[Any] = []
    for x in arguments:
        if isinstance(x, TensorDescriptor):
            found.append((x.base.data_ptr(), x.shape, x.strides, x.block_shape, x.padding))
        else:
            found.append(x.data_ptr() if isinstance(x, torch.Tensor) else x)
    return found


@pytest.mark.skipif(not launching._KNOWN, reason="this Triton launches every kernel itself")
def test_later_launches_are_those_that_triton_would_make(recorded: Recorded) -> None:
    launch = launch_of(40)
    tensors = [torch.arange(64.0) for _ in range(6)]
    for source, out, scale in zip(tensors[::2], tensors[1::2], (0.5, 0.25, 2.0), strict=True):
        launch(source=source, out=out, scale=scale)
    mine = [told(arguments) for arguments in recorded.launches]
    recorded.launches.clear()
    for source, out, scale in zip(tensors[::2], tensors[1::2], (0.5, 0.25, 2.0), strict=True):
        launch_of(40)(source=source, out=out, scale=scale)
    assert mine == [told(arguments) for arguments in recorded.launches]
    assert len({str(arguments) for arguments in mine}) == 3


def test_a_launch_keeps_no_tensor_alive(recorded: Recorded) -> None:
    launch, source, out = launch_of(40), torch.arange(64.0), torch.empty(64)
    gone = weakref.ref(source), weakref.ref(out)
    launch(source=source, out=out, scale=1.0)
    recorded.launches.clear()
    del source, out
    gc.collect()
    assert [tensor() for tensor in gone] == [None, None]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (torch.ones(2, 3, 4), True),
        (torch.ones(2, 3, 5), False),
        (torch.ones(2, 3, 4, dtype=torch.float16), False),
        (torch.ones(2, 4, 3).transpose(1, 2), False),
        (torch.ones(2, 3, 4, device="meta"), False),
        (None, False),
    ],
)
def test_alike(other: torch.Tensor | None, same: bool) -> None:
    assert (alike(None, torch.zeros(2, 3, 4)) == alike(None, other)) is same
