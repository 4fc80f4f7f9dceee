"""Random unions of terms, shapes and dtypes against the oracle: a few in the interpreter, hundreds where there is a GPU."""

import random

import pytest
import torch

from sparse_attn import Anchors, Chunked, Dilated, Full, Global, Pattern, Random, Sinks, Strided, Window
from sparse_attn.testing.judge_attention import judge_attention

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning",
    "ignore:divide by zero:RuntimeWarning",
    "ignore:overflow encountered:RuntimeWarning",
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning",
)


def draw_term(draw: random.Random, n: int) -> Pattern:
    """One term whose parameters suit a sequence of n keys, cut to a window or not."""
    stride = draw.randint(2, max(n // 4, 2))
    term: Pattern = draw.choice(
        [
            Window(draw.randint(1, n // 2 + 1), draw.choice([None, 0, n // 8])),
            Chunked(draw.randint(1, n // 2 + 1)),
            Dilated(draw.choice([None, draw.randint(1, 9)]), draw.randint(1, 9)),
            Strided(stride, draw.randrange(stride), draw.choice(["all", "strided"])),
            Sinks(draw.randint(1, 9)),
            Global([draw.randrange(n + 5) for _ in range(draw.randint(0, 4))]),
            Random(draw.randint(1, 3), draw.randint(0, 9), draw.choice([8, 16, 24, 64])),
            Full(),
        ]
    )
    return term.within(Window(draw.randint(1, n), draw.choice([None, 0]))) if draw.random() < 0.2 else term


def draw_pattern(draw: random.Random, n: int) -> Pattern:
    """A union of one to four terms."""
    pattern = draw_term(draw, n)
    for _ in range(draw.randint(0, 3)):
        pattern |= draw_term(draw, n)
    return pattern


def judge_random(seed: int, longest: int, dtype: torch.dtype, device: str) -> None:
    """Draw a union, a shape and perhaps documents or extra keys, and judge output, LSE and every gradient."""
    draw = random.Random(seed)
    S = draw.randint(1, longest)
    T = draw.choice([S, draw.randint(1, S)])
    hkv, group, d = draw.choice([1, 2]), draw.choice([1, 2, 3]), draw.choice([16, 32])
    pattern = draw_pattern(draw, S)
    shapes = {"q": (T, hkv * group), "k": (S, hkv), "v": (S, hkv)}
    batch = draw.choice([1, 2])
    options: dict[str, object] = {"causal": draw.random() < 0.6}
    if draw.random() < 0.3:
        cuts = sorted(draw.randint(0, T) for _ in range(2))
        behind = S - T  # the last document keeps the keys that have no query
        options |= {"cu_seqlens_q": [0, *cuts, T], "cu_seqlens_k": [0, *cuts, T + behind]}
        batch = 1
    packed = "cu_seqlens_q" in options
    inputs = {name: torch.randn(batch, n, heads, d, device=device).to(dtype) for name, (n, heads) in shapes.items()}
    if draw.random() < 0.3 and not packed:
        block, r = draw.choice([8, 32]), draw.choice([1, 5, 16])
        pattern |= Anchors(r, block)
        extra = (batch, -(-S // block), r, hkv, d)
        inputs |= {name: torch.randn(extra, device=device).to(dtype) for name in ("extra_k", "extra_v")}
    if packed:
        inputs = {name: tensor[0] for name, tensor in inputs.items()}
    print(f"{pattern!r} T={T} S={S} {options}")  # shown where it fails
    judge_attention(inputs, pattern, implementation="triton", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs for real below")
@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 150))])
def test_in_the_interpreter(seed: int) -> None:
    judge_random(seed, 40, torch.float32, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("seed", range(100))
def test_on_a_gpu(seed: int, dtype: torch.dtype) -> None:
    judge_random(1000 + seed, 400, dtype, "cuda")
