"""Keys and values of one layer at decode time: those that a later query may still see, and no others."""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ..patterns import Anchors, AnchorTree, Pattern
from ..patterns.chosen import split_choice
from ..patterns.live import live_mask
from .anchor_tree import AnchorTreeCache
from .anchors import AnchorCache
from .blocks import BlockCache


class AttentionCache:
    """The cache that `nn.SparseSelfAttention.step` writes and reads.

    Args:
        pattern: The layer's; keys that no later query sees through it are dropped from time to time, so that a window with
            sinks and anchors takes constant memory, at most about twice what it needs.

    Attributes:
        length: Tokens read so far.
        positions: Of the keys that are kept, in order.
        anchors: The cache of the pattern's anchors, if it has any.
        blocks: The compressed blocks that a `TopBlocks` term chooses from, if there is one; then all keys are kept.
    """

    def __init__(self, pattern: Pattern) -> None:
        if pattern.examples is not None:
            raise NotImplementedError(
                f"{pattern!r} lists positions by example: decode each example with its own pattern"
            )
        self.pattern = pattern
        self.length = 0
        self.positions: NDArray[np.int64] = np.zeros(0, np.int64)
        self.anchors: AnchorCache | AnchorTreeCache | None = None
        for term in pattern.terms:
            if isinstance(term, Anchors):
                self.anchors = AnchorCache(term.block)
            elif isinstance(term, AnchorTree):
                self.anchors = AnchorTreeCache(term)
        choice = split_choice(pattern)
        self.blocks = None if choice is None else BlockCache(choice.term.block)
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def complete(self) -> bool:
        """Whether every key read so far is still there."""
        return len(self.positions) == self.length

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept, room for keys to come included."""
        own = sum(x.nbytes for x in (self._keys, self._values) if x is not None)
        return own + sum(part.nbytes for part in (self.anchors, self.blocks) if part is not None)

    def append(self, k: Float[Tensor, "B T Hkv D"], v: Float[Tensor, "B T Hkv D"]) -> None:
        """Take T more tokens' keys, as attention reads them, and values."""
        kept, new = len(self.positions), k.shape[1]
        if self._keys is None or self._values is None or kept + new > self._keys.shape[1]:
            self._make_room(k, v)
            kept = len(self.positions)
        assert self._keys is not None
        assert self._values is not None
        self._keys[:, kept : kept + new] = k
        self._values[:, kept : kept + new] = v
        self.positions = np.concatenate([self.positions, np.arange(self.length, self.length + new)])
        self.length += new

    def kept(self) -> tuple[Float[Tensor, "B K Hkv D"], Float[Tensor, "B K Hkv D"]]:
        """The keys and values at `positions`."""
        assert self._keys is not None
        assert self._values is not None
        return self._keys[:, : len(self.positions)], self._values[:, : len(self.positions)]

    def seen_by_last(self) -> Int[Tensor, " K"] | None:
        """Which of the kept keys the last token sees; None: all of them."""
        i, j = np.array([[self.length - 1]]), self.positions[None]
        keep = np.zeros((1, len(self.positions)), dtype=bool)
        for term in self.pattern.terms:
            keep |= term.keeps(i, j, self.length, True)
        return None if keep.all() else torch.from_numpy(np.flatnonzero(keep))

    def _make_room(self, k: Tensor, v: Tensor) -> None:
        live = np.flatnonzero(live_mask(self.pattern, self.length)[self.positions])
        self.positions = self.positions[live]
        room = max(2 * (len(live) + k.shape[1]), 64)
        for name, old, new in (("_keys", self._keys, k), ("_values", self._values, v)):
            made = new.new_zeros(new.shape[0], room, *new.shape[2:])
            if old is not None:
                made[:, : len(live)] = old[:, torch.from_numpy(live).to(old.device)]
            setattr(self, name, made)
