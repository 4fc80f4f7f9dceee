"""Anchors at decode time: the scan's state and the tokens of the block that is not complete; its size never grows."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.anchors import AnchorState, AnchorWeights, anchor_scan, read_anchors
from ..ops.check_sizes import check_size
from .check_tokens import check_tokens


class AnchorCache:
    """The extra keys of an `Anchors` term, token by token or chunk by chunk.

    Rows have the same bits as `anchor_keys` gives them for the whole sequence: a block is pooled once its last token is
    there, and the scan goes on from its state. State and tokens are kept without their autograd graph: rows carry gradients of
    the tokens at hand alone.

    Args:
        block: The term's block.

    Attributes:
        length: Tokens read so far.
        state: After the last complete block; None before the first token.
    """

    def __init__(self, block: int) -> None:
        check_size("block", block)
        self.block = block
        self.length = 0
        self.state: AnchorState | None = None
        self._open: tuple[Tensor, Tensor] | None = None

    def extend(
        self, k: Float[Tensor, "B T Hkv D"], v: Float[Tensor, "B T Hkv D"], weights: AnchorWeights
    ) -> tuple[Float[Tensor, "B N R Hkv D"], Float[Tensor, "B N R Hkv D"]]:
        """Take T more tokens, at least one.

        Returns:
            The rows that these tokens see, one for each block that they stand in, oldest first.

        Raises:
            ValueError: no tokens, or shapes that disagree with what came before.
        """
        check_tokens(k, v, None if self._open is None else self._open[0])
        if self._open is not None:
            k, v = torch.cat([self._open[0], k], 1), torch.cat([self._open[1], v], 1)
        self.length += k.shape[1] - (0 if self._open is None else self._open[0].shape[1])
        done = k.shape[1] // self.block * self.block
        *_, rows_k, rows_v, state = read_anchors(k[:, :done], v[:, :done], weights, self.block, initial=self.state)
        self.state = AnchorState(*(x.detach() for x in state))
        # A copy: a view would keep the whole chunk alive.
        self._open = k[:, done:].detach().clone(), v[:, done:].detach().clone()
        if done < k.shape[1]:  # the last tokens stand in a block that is not complete
            # The scan's own row, not `state.row`: it divides as it did in the rows before, to the bit.
            nothing = k.new_zeros(k.shape[0], 1, *k.shape[2:])
            last_k, last_v, _ = anchor_scan(weights.queries, nothing, nothing, state)
            rows_k, rows_v = torch.cat([rows_k, last_k], 1), torch.cat([rows_v, last_v], 1)
        return rows_k, rows_v

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(x.nbytes for x in (*(self.state or ()), *(self._open or ())))
