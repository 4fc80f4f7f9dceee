"""An anchor tree at decode time: a few nodes of each level and the tokens of the open block; its size never grows."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.anchor_tree import TreeWeights, check_weights, summarise
from ..patterns import AnchorTree
from .check_tokens import check_tokens


class AnchorTreeCache:
    """The extra keys of an `AnchorTree` term, token by token or chunk by chunk.

    A node is made once its last block is complete, from the nodes below it; each level keeps the 2 * fanout nodes that rows
    or coarser nodes may still ask for. Rows agree with `tree_keys` up to rounding. Nodes and tokens are kept
    without their autograd graph: of a row only its null keys carry gradients.

    Args:
        tree: The term.

    Attributes:
        length: Tokens read so far.
    """

    def __init__(self, tree: AnchorTree) -> None:
        if not isinstance(tree, AnchorTree):
            raise ValueError(f"tree must be an AnchorTree term, got {tree!r}")
        self.tree = tree
        self.length = 0
        self._nodes: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(tree.levels)]
        self._made = [0] * tree.levels  # nodes of each level so far; the last of them are kept
        self._open: tuple[Tensor, Tensor] | None = None

    def extend(
        self, k: Float[Tensor, "B T Hkv D"], v: Float[Tensor, "B T Hkv D"], weights: TreeWeights
    ) -> tuple[Float[Tensor, "B N E Hkv D"], Float[Tensor, "B N E Hkv D"]]:
        """Take T more tokens, at least one.

        Returns:
            The rows that these tokens see, one for each block that they stand in, oldest first.

        Raises:
            ValueError: no tokens, weights of another tree, or shapes that disagree with what came before.
        """
        check_tokens(k, v, None if self._open is None else self._open[0])
        check_weights(weights, self.tree, k)
        self.length += k.shape[1]
        if self._open is not None:
            k, v = torch.cat([self._open[0], k], 1), torch.cat([self._open[1], v], 1)
        rows = []
        for start in range(0, k.shape[1], self.tree.block):
            rows.append(self._row(weights, k))
            own_k, own_v = (x[:, start : start + self.tree.block] for x in (k, v))
            if own_k.shape[1] == self.tree.block:
                self._add(0, *summarise(weights.queries[0], own_k[:, None], own_v[:, None]), weights)
        done = k.shape[1] // self.tree.block * self.tree.block
        self._open = k[:, done:].detach().clone(), v[:, done:].detach().clone()
        return torch.stack([row[0] for row in rows], 1), torch.stack([row[1] for row in rows], 1)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        nodes = [x for level in self._nodes for node in level for x in node]
        return sum(x.nbytes for x in (*nodes, *(self._open or ())))

    def _add(self, level: int, k: Tensor, v: Tensor, weights: TreeWeights) -> None:
        """Take a node ``[B, 1, R, Hkv, D]``, and make the coarser one that it completes."""
        fanout = self.tree.fanout
        own = self._nodes[level]
        own.append((k.detach(), v.detach()))
        del own[: -2 * fanout]
        self._made[level] += 1
        if level + 1 < self.tree.levels and self._made[level] % fanout == 0:
            below_k, below_v = (torch.cat([node[side] for node in own[-fanout:]], 2) for side in (0, 1))
            self._add(level + 1, *summarise(weights.queries[level + 1], below_k, below_v), weights)

    def _row(self, weights: TreeWeights, like: Tensor) -> tuple[Tensor, Tensor]:
        parts: list[list[Tensor]] = [[], []]
        for level, shown in enumerate(self.tree.shown(self._made[0])):
            first = self._made[level] - len(self._nodes[level])
            for side, null in enumerate((weights.null_k, weights.null_v)):
                missing = null[level].to(like.dtype).expand(like.shape[0], -1, -1, -1)
                parts[side] += [self._nodes[level][node - first][side][:, 0] for node in shown]
                parts[side] += [missing] * (self.tree.fanout - len(shown))
        return torch.cat(parts[0], 1), torch.cat(parts[1], 1)
