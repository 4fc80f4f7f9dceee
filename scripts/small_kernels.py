"""Runs every GPU kernel once, forward and backward, on small and crooked shapes: something for a memory checker to watch.

compute-sanitizer --tool memcheck --error-exitcode 1 python scripts/small_kernels.py
compute-sanitizer --tool racecheck --error-exitcode 1 python scripts/small_kernels.py
"""

from typing import Any

import torch

from sparse_attn import attention, parse

PATTERNS = (
    "window(100)",
    "chunked(70) | sinks(3) | strided(37) | random(2) | anchors(5, block=32)",
    "window(40) | dilated(9, 5) | global((3, 150, 151))",
)


def main() -> None:
    torch.manual_seed(0)
    for text in PATTERNS:
        pattern = parse(text)
        for T, S, causal in ((203, 259, True), (203, 203, False)):
            rows = -(-S // 32)
            sizes: dict[str, tuple[int, ...]] = {"q": (T, 4, 64), "k": (S, 2, 64), "v": (S, 2, 64)}
            if pattern.extra_keys:
                sizes |= dict.fromkeys(("extra_k", "extra_v"), (rows, pattern.extra_keys, 2, 64))
            tensors: dict[str, Any] = {
                name: torch.randn(1, *size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                for name, size in sizes.items()
            }
            out: Any = attention(**tensors, pattern=pattern, causal=causal)
            out.sum().backward()
            torch.cuda.synchronize()
            assert all(torch.isfinite(tensor.grad).all() for tensor in tensors.values())
            print(f"{text}: {T} queries, {S} keys, {'causal' if causal else 'bidirectional'}")


if __name__ == "__main__":
    main()
