"""Self-attention whose heads decide from the input how much they read."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..patterns import Pattern
from .attention import Cache, SparseSelfAttention
from .router import Route, Router


class RoutedSelfAttention(SparseSelfAttention):
    """`SparseSelfAttention` over a `TopBlocks` pattern, with a `Router` that decides how many of the chosen blocks are read.

    Args:
        dim, heads, pattern, options: As for `SparseSelfAttention`.
        budgets, run: The router's numbers of blocks to decide between, and queries that share a decision.

    Attributes:
        router: The router.
        route: What it decided in the last forward pass; None before. `route.over(budget)` goes into the loss.

    Raises:
        ValueError: as the two raise it, or a layer that is not causal.

    >>> import torch
    >>> layer = RoutedSelfAttention(32, 4, Window(16) | TopBlocks(4, block=8), budgets=(0, 1, 4))
    >>> loss = layer(torch.randn(1, 100, 32)).square().mean() + 0.1 * layer.route.over(budget=16)
    >>> bool((layer.spent_pairs() <= layer.pattern.pairs(100)).all())
    True
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        pattern: Pattern,
        *,
        budgets: Sequence[int] = (0, 4, 16),
        run: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(dim, heads, pattern, **options)
        if not self.causal:
            raise ValueError("causal must be True: a router reads the first token of each run of queries")
        self.router = Router(dim, self.kv_heads, pattern, budgets=budgets, block=run)
        self.route: Route | None = None
        self._last: tuple[Tensor, list[int] | None] | None = None

    def spent_pairs(self) -> Tensor:
        """The exact pairs that each example and KV head spent in the last forward pass (see `spent_pairs`)."""
        if self.route is None or self._last is None:
            raise ValueError("spent_pairs: nothing was spent yet: call the layer first")
        return self.router.spent_pairs(self.route, self._last[0], cu_seqlens=self._last[1])

    def step(self, x: Tensor, cache: Cache) -> Tensor:
        raise NotImplementedError(
            "step: a routed layer reads whole sequences; decode without the router's class, or call it"
        )

    def _attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: list[int] | None, extra: dict[str, Any]
    ) -> Tensor:
        self.route = self.router(x, cu_seqlens=bounds)
        self._last = extra["selected"], bounds
        return self.router.attend(self.route, q, k, v, cu_seqlens_q=bounds, implementation=self.implementation, **extra)
