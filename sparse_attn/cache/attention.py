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
from .check_tokens import check_tokens

STEP = 32  # tokens from one time that keys are dropped to the next


class AttentionCache:
    """The cache that `nn.SparseSelfAttention.step` writes and reads.

    What is kept of a sequence, and the room that it takes, hang on its length alone: read at once, in chunks or token by
    token. Tensors are kept without their autograd graph: no gradient goes through a cache to earlier tokens.

    Args:
        pattern: The layer's; every 32 tokens, keys that no later query sees through it are dropped, so that a window with
            sinks and anchors takes constant memory: at most a quarter more than its keys and 32 others need, or 16 more keys.

    Attributes:
        length: Tokens read so far.
        positions: Of the keys that are kept, in order.
        anchors: The cache of the pattern's anchors, if it has any.
        blocks: The compressed blocks that a `TopBlocks` term chooses from, if there is one; then all keys are kept.

    Raises:
        ValueError: no pattern.
        NotImplementedError: a pattern that lists positions by example.
    """

    def __init__(self, pattern: Pattern) -> None:
        if not isinstance(pattern, Pattern):
            raise ValueError(f"pattern must be a Pattern such as Window(2048) | Sinks(4), got {pattern!r}")
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
        """Take T more tokens' keys, as attention reads them, and values.

        Raises:
            ValueError: no tokens, or shapes, dtypes or devices that disagree with each other or with what came before.
        """
        check_tokens(k, v, self._keys)
        length = self.length + k.shape[1]
        # Keys are dropped at multiples of STEP that lie before the last token, which must find all that it sees.
        dropped, cut = (max(n - 1, 0) // STEP * STEP for n in (self.length, length))
        positions = np.concatenate([self.positions, np.arange(self.length, length)])
        old = len(self.positions)
        if self._keys is not None and self._values is not None and dropped == cut:
            self._keys[:, old : len(positions)] = k.detach()
            self._values[:, old : len(positions)] = v.detach()
        else:
            stays = np.ones(len(positions), dtype=bool)
            early = positions < cut
            stays[early] = live_mask(self.pattern, cut)[positions[early]]
            room = _room(int(stays.sum()) - (length - cut) + STEP)
            self._keys = _moved(self._keys, k, stays, old, room)
            self._values = _moved(self._values, v, stays, old, room)
            positions = positions[stays]
        self.positions, self.length = positions, length

    def kept(self) -> tuple[Float[Tensor, "B K Hkv D"], Float[Tensor, "B K Hkv D"]]:
        """The keys and values at `positions`.

        Raises:
            ValueError: no token was read yet.
        """
        if self._keys is None or self._values is None:
            raise ValueError("kept: the cache is empty: append keys and values first")
        return self._keys[:, : len(self.positions)], self._values[:, : len(self.positions)]

    def seen_by_last(self) -> Int[Tensor, " K"] | None:
        """Which of the kept keys the last token sees, none perhaps; None: all of them.

        Raises:
            ValueError: no token was read yet.
        """
        if self.length == 0:
            raise ValueError("seen_by_last: the cache is empty: append keys and values first")
        i, j = np.array([[self.length - 1]]), self.positions[None]
        keep = np.zeros((1, len(self.positions)), dtype=bool)
        for term in self.pattern.terms:
            keep |= term.keeps(i, j, self.length, True)
        return None if keep.all() else torch.from_numpy(np.flatnonzero(keep))


def _room(tokens: int) -> int:
    """Room for so many tokens and up to a quarter more: few copies where keys only grow."""
    unit = max(16, 1 << (tokens.bit_length() - 3))
    return -(-tokens // unit) * unit


def _moved(own: Tensor | None, new: Tensor, stays: NDArray[np.bool_], old: int, room: int) -> Tensor:
    """What stays of the `old` first tokens, which are one's own, and of the new ones, in so much room."""
    made = own
    if own is None or own.shape[1] != room or not stays[:old].all():
        made = new.new_zeros(new.shape[0], room, *new.shape[2:])
        if own is not None:
            kept = torch.from_numpy(np.flatnonzero(stays[:old])).to(own.device)
            made[:, : len(kept)] = own[:, kept]
    assert made is not None
    count = int(stays[:old].sum())
    chosen = torch.from_numpy(np.flatnonzero(stays[old:])).to(new.device)
    made[:, count : count + len(chosen)] = new.detach()[:, chosen]
    return made
