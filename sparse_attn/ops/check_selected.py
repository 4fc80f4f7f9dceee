"""What `attention` was told about chosen blocks, checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..patterns import Pattern
from ..patterns.chosen import Choice, split_choice
from ..patterns.hashed import split_hashed
from ..patterns.refusals import check_direction


def same_choice(patterns: Sequence[Pattern]) -> Choice:
    """The choice that all KV heads make; their static parts may differ.

    Raises:
        ValueError: none has a `TopBlocks` term; one has another than another, or has two.
    """
    choices = [split_choice(pattern) for pattern in patterns]
    first = choices[0]
    if not any(choices):
        raise ValueError(f"pattern must have a TopBlocks term, which says what is chosen, got {patterns[0]!r}")
    if any(own is None or first is None or (own.term, own.limit) != (first.term, first.limit) for own in choices):
        raise ValueError("pattern: all KV heads must have the same TopBlocks term, cut alike, and at most one")
    if any(own is not None and own.static is None for own in choices) and len(patterns) > 1:
        raise ValueError("pattern: where KV heads differ, each needs a static term beside TopBlocks, e.g. window(1)")
    assert first is not None
    return first


def check_hashed(patterns: Sequence[Pattern], causal: bool) -> None:
    """Check that all KV heads hash alike, and causally.

    Raises:
        ValueError: one has another `Hashed` term or cut than another, or none; or no static term where heads differ.
        NotImplementedError: attention that is not causal.
    """
    rests = [split_hashed(pattern) for pattern in patterns]
    if len({None if rest is None else (rest.term, rest.limit) for rest in rests}) > 1:
        raise ValueError("pattern: all KV heads must have the same Hashed term, cut alike, and at most one")
    if any(rest is not None and rest.static is None for rest in rests) and len(patterns) > 1:
        raise ValueError("pattern: where KV heads differ, each needs a static term beside Hashed, e.g. window(1)")
    for rest in rests:
        if rest is not None:
            check_direction(rest.term, causal)


def check_selected(
    selected: Tensor | None, choice: Choice | None, q: Tensor, k: Tensor, lengths: list[tuple[int, int]] | None
) -> Tensor | None:
    """The chosen blocks in int32.

    Args:
        lengths: Queries and keys of each document; None: known on the device only.

    Raises:
        ValueError: no term that says what the numbers mean, or a dtype, device or shape that does not fit it.
    """
    if selected is None:
        return None
    if choice is None:
        raise ValueError("selected was given, but the pattern has no TopBlocks term that says what it chooses")
    form = "([B,] N, Hkv or Hq, K)"
    if not isinstance(selected, Tensor) or selected.is_floating_point() or selected.dtype == torch.bool:
        got = selected.dtype if isinstance(selected, Tensor) else type(selected).__name__
        raise ValueError(f"selected must be an integer tensor {form}, got {got}")
    if selected.device != q.device:
        raise ValueError(f"selected must be on q's device {q.device}, got {selected.device}")
    shape, term = tuple(selected.shape), choice.term
    n_tiles = None if lengths is None else sum([term.tiles(*own) for own in lengths])
    fits = len(shape) == q.dim() and shape[:-3] == tuple(q.shape[:-3]) and n_tiles in (None, shape[-3])
    if not fits or shape[-2] not in (k.shape[-2], q.shape[-2]):
        rows = "N" if n_tiles is None else n_tiles
        expected = ", ".join(map(str, (*q.shape[:-3], rows, f"{k.shape[-2]} or {q.shape[-2]}", "K")))
        raise ValueError(f"selected must have shape ({expected}) {form} for {term!r}, got {shape}")
    if term.most_blocks is not None and shape[-1] > term.most_blocks:
        raise ValueError(f"selected names {shape[-1]} blocks for each query, more than {term!r} allows")
    return selected.to(torch.int32)
