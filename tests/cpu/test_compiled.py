"""Compiled regions take the CPU path as one operator: no graph break, and eager's bits in results and gradients."""

import torch
from torch import Tensor

from sparse_attn.cpu.anchor_scan import scan_blocks
from sparse_attn.cpu.registration import cpu_anchor_scan, cpu_attention
from tests.apart import run_apart

COMPILED = """
import torch
from sparse_attn import Anchors, AnchorTree, Sinks, Window, attention, parse
from sparse_attn.nn import SparseSelfAttention

T, HQ, HKV, D = 45, 4, 2, 8
torch.manual_seed(0)

def draw(*shape):
    return torch.randn(*shape, requires_grad=True)

def same(run, tensors):
    found = []
    for own in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        out = own(*tensors)
        found.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    assert all(torch.equal(eager, other) for eager, other in zip(*found, strict=True))

q, k, v = draw(2, T, HQ, D), draw(2, T, HKV, D), draw(2, T, HKV, D)
extra = [draw(2, 3, 3, HKV, D) for _ in range(2)]
pattern = Window(8) | Anchors(3, block=16)

def run(q, k, v, extra_k, extra_v):
    out, lse = attention(q, k, v, pattern, extra_k=extra_k, extra_v=extra_v, return_lse=True)
    return out + lse[..., None]

same(run, [q, k, v, *extra])
fixed = q.detach()
same(lambda *given: run(fixed, *given), [k, v, *extra])  # the gradients that are asked for, and no others

bounds = torch.tensor([0, 20, T])
by_head = [Window(4) | Sinks(2), Window(9)]
same(lambda q, k, v: attention(q, k, v, by_head, cu_seqlens_q=bounds), [draw(T, h, D) for h in (HQ, HKV, HKV)])

for own in (pattern, Window(8) | AnchorTree(2, fanout=2, r=2, block=8)):
    layer = SparseSelfAttention(32, HQ, own, kv_heads=HKV)
    weights = dict(layer.named_parameters())
    same(
        lambda x, *own: torch.func.functional_call(layer, dict(zip(weights, own)), (x,)),
        [draw(2, T, 32), *weights.values()],
    )

with torch.no_grad():  # these break the graph, and come out right
    for text in ("window(8) | topblocks(2, block=8)", "coverblocks(0.5, block=8, rows=8)", "hashed(2, 4)"):
        chosen = parse(text)
        partly = torch.compile(lambda q, k, v: attention(q, k, v, chosen), backend="eager")
        assert torch.equal(partly(q, k, v), attention(q, k, v, chosen))
print("compiled")
"""


def test_compiled_whole_with_the_bits_of_eager() -> None:
    done = run_apart(COMPILED)
    assert done.stdout == "compiled\n", done.stderr


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def test_the_operators_keep_what_pytorch_asks_of_one() -> None:
    q, k, v = draw(1, 9, 2, 4), draw(1, 9, 1, 4), draw(1, 9, 1, 4)
    torch.library.opcheck(cpu_attention, (q, k, v, None, None, None, None, "window(4)", True, 0.3))
    scan = (draw(3, 2, 4), draw(2, 5, 2, 4), draw(2, 5, 2, 4), torch.zeros(2, 3, 2), torch.rand(2, 3, 2) + 1)
    state = (draw(2, 3, 2, 4), draw(2, 3, 2, 4))
    torch.library.opcheck(cpu_anchor_scan, (*scan, *state))
    for one, other in zip(scan_blocks(*scan, *state), cpu_anchor_scan(*scan, *state)[:6], strict=True):
        assert torch.equal(one, other)
