"""Runs every GPU kernel once, forward and backward, on small and crooked shapes: something for a memory checker to watch.

compute-sanitizer --tool memcheck --error-exitcode 1 python scripts/small_kernels.py
compute-sanitizer --tool racecheck --error-exitcode 1 python scripts/small_kernels.py

Patterns may be named instead of those below, and head dims (racecheck is slow). On Hopper the first three patterns go through
its own kernels. What racecheck does not see of those is in benchmarks/NOTES.md.
"""

import argparse
from itertools import product
from typing import Any

import torch

from sparse_attn import Anchors, attention, parse

PATTERNS = (
    "window(100)",
    "window(60) | sinks(3) | strided(9) | anchors(64, block=128)",
    "window(40) | strided(2)",
    "chunked(70) | sinks(3) | strided(37) | random(2) | anchors(5, block=32)",
    "window(40) | dilated(9, 5) | global((3, 150, 151))",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=PATTERNS)
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64, 128, 256])
    options = parser.parse_args()
    torch.manual_seed(0)
    for text in options.patterns:
        pattern = parse(text)
        for D, (T, S, causal) in product(options.head_dims, ((203, 259, True), (203, 203, False))):
            sizes: dict[str, tuple[int, ...]] = {"q": (T, 4, D), "k": (S, 2, D), "v": (S, 2, D)}
            summaries = next((term for term in pattern.terms if isinstance(term, Anchors)), None)
            if summaries is not None:
                sizes |= dict.fromkeys(("extra_k", "extra_v"), (-(-S // summaries.block), summaries.r, 2, D))
            tensors: dict[str, Any] = {
                name: torch.randn(1, *size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                for name, size in sizes.items()
            }
            out: Any = attention(**tensors, pattern=pattern, causal=causal)
            out.sum().backward()
            torch.cuda.synchronize()
            assert all(torch.isfinite(tensor.grad).all() for tensor in tensors.values())
            print(f"{text}, D {D}: {T} queries, {S} keys, {'causal' if causal else 'bidirectional'}")


if __name__ == "__main__":
    main()
