"""Attention that chooses or hashes, on a GPU: what the CPU answers in float32, forward and backward."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_attn import attention, parse, select_blocks
from sparse_attn.ops import compressed_attention, pool_blocks

pytestmark = pytest.mark.gpu

PATTERNS = {
    "cover, a head each": "window(64) | sinks(16) | coverblocks(0.8, block=32, rows=32, stride=8)",
    "stripes": "window(64) | sinks(4) | verticalslash(0.8, block=32, rows=32)",
    "blocks, a query each": "window(64) | sinks(4) | topblocks(3, block=32)",
    "blocks, a tile each": "window(64) | topblocks(3, block=32, rows=32)",
    "hashed": "window(16) | hashed(2, 8)",
    "hashed, chunks": "hashed(3, 4, chunk=16) | sinks(2)",
}
BOUNDS = [0, 130, 131, 500]


def on_both(pattern: str, **options: Any) -> list[list[Tensor]]:
    torch.manual_seed(0)
    lead = (500,) if options else (2, 500)
    made = [torch.randn(*lead, heads, 64) for heads in (4, 2, 2)]
    found = []
    for device in ("cpu", "cuda"):
        leaves = [x.to(device).requires_grad_("rows=" not in pattern) for x in made]  # a tile's choice does not train
        out = attention(*leaves, parse(pattern), **options)
        grads = torch.autograd.grad(out.sin().sum(), leaves) if out.requires_grad else ()
        found.append([x.detach().cpu() for x in (out, *grads)])
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_gpu_answers_as_the_cpu(pattern: str, packed: bool) -> None:
    options = {"cu_seqlens_q": BOUNDS, "cu_seqlens_k": BOUNDS} if packed else {}
    cpu, gpu = on_both(pattern, **options)
    for name, there, here in zip(("out", "dq", "dk", "dv"), cpu, gpu, strict=False):
        wrong = (here - there).abs().max() / there.abs().max()
        assert wrong < 2e-2, name  # products of tensor cores are not float32's


def test_a_coarse_look_is_the_cpus() -> None:
    torch.manual_seed(0)
    made = [torch.randn(2, 300, heads, 64) for heads in (4, 2, 2)]
    found = []
    for device in ("cpu", "cuda"):
        leaves = [x.to(device).requires_grad_() for x in made]
        coarse = pool_blocks(*leaves[1:], 32)
        out, chosen = compressed_attention(leaves[0], *coarse, parse("window(64) | topblocks(3, block=32)"), n_keys=300)
        grads = torch.autograd.grad(out.sin().sum(), leaves)
        found.append([x.detach().cpu() for x in (out, *grads, chosen.sort(-1).values)])
    for there, here in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)


def test_a_choice_is_the_cpus() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 500, 4, 64), torch.randn(2, 500, 2, 64)
    pattern = parse("window(64) | topblocks(3, block=32)")
    there, here = (select_blocks(q.to(device), k.to(device), pattern).cpu() for device in ("cpu", "cuda"))
    assert torch.equal(here, there)  # best first on both
