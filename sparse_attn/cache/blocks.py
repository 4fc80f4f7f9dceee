"""Compressed blocks at decode time: one key and value for each block that is complete, and the tokens of the one that is not."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.anchors import pool_blocks
from ..ops.check_sizes import check_size
from .check_tokens import check_tokens


class BlockCache:
    """What a selector reads of earlier tokens, token by token or chunk by chunk.

    Everything is kept, and handed out, without its autograd graph.

    Args:
        block: Tokens of a block.

    Attributes:
        keys, values: Of the complete blocks, ``[B, blocks, Hkv, D]``, pooled; None before the first token.
    """

    def __init__(self, block: int) -> None:
        check_size("block", block)
        self.block = block
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._open: tuple[Tensor, Tensor] | None = None

    def extend(
        self, k: Float[Tensor, "B T Hkv D"], v: Float[Tensor, "B T Hkv D"], pooling: Float[Tensor, "Hkv D"] | None
    ) -> tuple[Float[Tensor, "B blocks Hkv D"], Float[Tensor, "B blocks Hkv D"]]:
        """Take T more tokens, at least one.

        Returns:
            One key and value for each block so far. Of a block that is not complete they are zeros: no query chooses it.

        Raises:
            ValueError: no tokens, or shapes that disagree with what came before.
        """
        check_tokens(k, v, None if self._open is None else self._open[0])
        if self._open is not None:
            k, v = torch.cat([self._open[0], k], 1), torch.cat([self._open[1], v], 1)
        done = k.shape[1] // self.block * self.block
        if self.keys is None or self.values is None or done:
            new = pool_blocks(k[:, :done], v[:, :done], self.block, query=pooling)
            old = [x for x in (self.keys, self.values) if x is not None]
            self.keys, self.values = (torch.cat([*old[n : n + 1], new[n].detach()], 1) for n in range(2))
        # A copy: a view would keep the whole chunk alive.
        self._open = k[:, done:].detach().clone(), v[:, done:].detach().clone()
        if done == k.shape[1]:
            return self.keys, self.values
        return tuple(torch.cat([x, x.new_zeros(x.shape[0], 1, *x.shape[2:])], 1) for x in (self.keys, self.values))  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        kept = (self.keys, self.values, *(self._open or ()))
        return sum(x.nbytes for x in kept if x is not None)
