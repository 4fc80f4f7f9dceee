"""What an attention layer is made from: one sentence for each argument that it cannot be."""

from math import inf
from typing import TypeGuard

from ..ops.check_sizes import check_size
from ..ops.implementations import IMPLEMENTATIONS
from ..patterns import Pattern


def check_shapes(dim: int, heads: int, kv_heads: int, head_dim: int | None) -> None:
    """Refuse sizes that are none, or do not fit together."""
    for name, size in (("dim", dim), ("heads", heads), ("kv_heads", kv_heads), ("head_dim", head_dim)):
        if size is not None:
            check_size(name, size)
    if heads % kv_heads:
        raise ValueError(f"heads must be a multiple of kv_heads {kv_heads}, got {heads}")
    if head_dim is None and dim % heads:
        raise ValueError(f"dim must be a multiple of heads {heads} unless head_dim is given, got {dim}")


def check_options(
    pattern: object, causal: object, theta: object, fraction: object, pooling: object, implementation: object
) -> None:
    """Refuse what is no pattern, and options that are none of those that `SparseSelfAttention` names."""
    if not isinstance(pattern, Pattern):
        raise ValueError(
            f"pattern must be a Pattern such as Window(512) | Anchors(64), got {pattern!r}; text goes through "
            "sparse_attn.parse"
        )
    if not isinstance(causal, bool):
        raise ValueError(f"causal must be True or False, got {causal!r}")
    if theta is not None and not (is_number(theta) and 0.0 < theta < inf):
        raise ValueError(f"rope_theta must be a positive number or None, got {theta!r}")
    if not (is_number(fraction) and 0.0 <= fraction <= 1.0):
        raise ValueError(f"rope_fraction must lie between 0 and 1, got {fraction!r}")
    if pooling not in ("learned", "mean"):
        raise ValueError(f"pooling must be 'learned' or 'mean', got {pooling!r}")
    if implementation is not None and not (isinstance(implementation, str) and implementation in IMPLEMENTATIONS):
        raise ValueError(f"implementation must be None or one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")


def is_number(x: object) -> TypeGuard[int | float]:
    return isinstance(x, int | float) and not isinstance(x, bool)
