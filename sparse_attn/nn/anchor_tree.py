"""An anchor tree as a module: learned queries of each level, and learned null keys."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.anchor_tree import TreeWeights, tree_keys
from ..ops.boundaries import Lengths
from ..ops.check_sizes import check_size
from ..patterns import AnchorTree


class AnchorTreeKeys(nn.Module):
    """The extra keys of an `AnchorTree` term, learned.

    Args:
        kv_heads, head_dim: Of the keys.
        tree: The term.

    Attributes:
        queries: ``[levels, Hkv, R, D]``, from a standard normal distribution.
        null_k, null_v: ``[levels, R, Hkv, D]``, zeros at first: a slot without a node takes part with logit 0 and adds
            nothing.

    Raises:
        ValueError: a size that is no integer of at least 1, no tree, or keys that do not fit.
    """

    def __init__(self, kv_heads: int, head_dim: int, tree: AnchorTree) -> None:
        super().__init__()
        for name, size in (("kv_heads", kv_heads), ("head_dim", head_dim)):
            check_size(name, size)
        if not isinstance(tree, AnchorTree):
            raise ValueError(f"tree must be an AnchorTree term, got {tree!r}")
        self.tree = tree
        self.queries = nn.Parameter(torch.randn(tree.levels, kv_heads, tree.r, head_dim))
        self.null_k = nn.Parameter(torch.zeros(tree.levels, tree.r, kv_heads, head_dim))
        self.null_v = nn.Parameter(torch.zeros(tree.levels, tree.r, kv_heads, head_dim))

    @property
    def block(self) -> int:
        return self.tree.block

    @property
    def weights(self) -> TreeWeights:
        return TreeWeights(self.queries, self.null_k, self.null_v)

    def forward(
        self, k: Float[Tensor, "*B S Hkv D"], v: Float[Tensor, "*B S Hkv D"], *, cu_seqlens: Lengths | None = None
    ) -> tuple[Float[Tensor, "*B S Hkv D"], Float[Tensor, "*B S Hkv D"], Tensor, Tensor]:
        """Keys and values as they came, and the extra ones from keys before any rotary embedding; see `ops.tree_keys`."""
        return k, v, *tree_keys(k, v, self.weights, self.tree, cu_seqlens=cu_seqlens)
