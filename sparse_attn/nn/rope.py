"""Rotary position embedding, on all of the head dim or on its first part."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .check_layer import is_number


def rotate(
    x: Float[Tensor, "*B T H D"], positions: Int[Tensor, " T"], theta: float, *, dims: int | None = None
) -> Float[Tensor, "*B T H D"]:
    """Pairs of numbers turned by an angle that grows with the position.

    (a, b) -> (a cos - b sin, b cos + a sin);  a = x[..., i], b = x[..., i + dims / 2], angle = position * theta^(-2 i / dims)

    Args:
        x: Queries or keys; any floating dtype.
        positions: Of the T tokens.
        theta: Base of the wavelengths.
        dims: How many of the D numbers are turned, an even number; the rest keep no position. None: all.

    Raises:
        ValueError: `dims` is odd or above D, `theta` is not positive, or positions are not T.

    Source: Su et al. 2021, arXiv:2104.09864; halves paired as in Llama's code.
    """
    dims = x.shape[-1] if dims is None else dims
    if x.dim() < 3 or positions.shape != x.shape[-3:-2]:
        raise ValueError(f"positions must have shape (T,) for x of shape (..., T, H, D), got {tuple(positions.shape)} and "
                         f"{tuple(x.shape)}")  # fmt: skip
    if not (is_number(theta) and theta > 0):
        raise ValueError(f"theta must be a positive number, got {theta!r}")
    if isinstance(dims, bool) or not isinstance(dims, int):
        raise ValueError(f"dims must be an even number up to the head dim {x.shape[-1]}, got {dims!r}")
    if dims % 2 or not 0 <= dims <= x.shape[-1]:
        raise ValueError(f"dims must be an even number up to the head dim {x.shape[-1]}, got {dims}")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    speeds = theta ** -(torch.arange(0, dims, 2, device=x.device, dtype=wide) / max(dims, 1))
    angles = (positions.to(wide)[:, None] * speeds)[:, None]
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., : dims // 2].to(wide), x[..., dims // 2 : dims].to(wide)
    return torch.cat([(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), x[..., dims:]], -1)
