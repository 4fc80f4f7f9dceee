"""Which tokens the last query can learn of, and through how many layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .pattern import Pattern


def layers_from_last(patterns: Sequence[Pattern], n_keys: int) -> NDArray[np.int16]:
    """For each token, the fewest layers through which its information can reach the last token of a causal model.

    1: the last query sees it directly in some layer; 2: a token that it sees has seen it in a layer below; and so on. 0:
    it cannot be reached. The last token itself counts as 1.

    Args:
        patterns: Each layer's pattern, the lowest layer first.
        n_keys: Tokens.

    Raises:
        ValueError: no layers, or no tokens.

    Cost: O(n_keys) time for each token that is reached.

    >>> layers_from_last([Window(3)] * 2, 7).tolist()
    [0, 0, 2, 2, 1, 1, 1]
    """
    if not patterns or n_keys < 1:
        raise ValueError(f"patterns and n_keys must be at least one, got {len(patterns)} layers and {n_keys} tokens")
    reached = np.zeros(n_keys, dtype=np.int16)
    reached[-1] = 1
    expanded = {pattern: np.zeros(n_keys, dtype=bool) for pattern in patterns}
    for depth, pattern in enumerate(reversed(patterns), 1):  # from the top layer down
        fresh = np.flatnonzero((reached > 0) & ~expanded[pattern])
        expanded[pattern][fresh] = True
        now = np.zeros(n_keys, dtype=bool)
        for query in fresh:
            now[: query + 1] |= pattern.mask(1, int(query) + 1)[0]
        reached[(reached == 0) & now] = depth
        if reached.all():
            break
    return reached
