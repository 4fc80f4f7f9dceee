"""What a cache is handed: keys and values of some tokens, of the same sequences as before."""

from torch import Tensor


def check_tokens(k: Tensor, v: Tensor, before: Tensor | None) -> None:
    """Refuse what does not continue the keys `before`, ``[B, any, Hkv, D]``; None: there are none.

    Raises:
        ValueError: no tokens, or shapes, dtypes or devices that disagree with each other or with what came before.
    """
    for name, tensor in (("k", k), ("v", v)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 4:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a tensor of shape (B, T, Hkv, D), got {got}")
    if v.shape != k.shape or v.dtype != k.dtype or v.device != k.device:
        raise ValueError(f"v must have k's shape {tuple(k.shape)}, dtype {k.dtype} and device {k.device}, got "
                         f"{tuple(v.shape)}, {v.dtype} and {v.device}")  # fmt: skip
    if k.shape[1] == 0:
        raise ValueError("k must hold at least one token, got none")
    if before is None:
        return
    if before.shape[0] != k.shape[0]:
        raise ValueError(f"k must have batch size {before.shape[0]} as before, got {k.shape[0]}")
    if before.shape[2:] != k.shape[2:] or before.dtype != k.dtype or before.device != k.device:
        raise ValueError(f"k must go on with (Hkv, D) = {tuple(before.shape[2:])}, {before.dtype} on {before.device} as "
                         f"before, got {tuple(k.shape[2:])}, {k.dtype} on {k.device}")  # fmt: skip
