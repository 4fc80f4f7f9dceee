"""Self-attention whose heads decide from the input how much they read."""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from ..patterns import Pattern
from .attention import Cache, SparseSelfAttention
from .check_layer import is_number
from .router import Route, Router


class RoutedSelfAttention(SparseSelfAttention):
    """`SparseSelfAttention` over a `TopBlocks` pattern, with a `Router` that decides how many of the chosen blocks are read.

    A forward pass in training leaves its budget term behind, to be taken once for the loss: by `budget_term`, or by
    `budget_terms` of a whole model. All else that the layer keeps of a pass is detached from the autograd graph. Under
    checkpointing, what the backward pass recomputes leaves a term behind once more: take it too, and drop it.

    Args:
        dim, heads, pattern, options: As for `SparseSelfAttention`.
        budgets, run: The router's numbers of blocks to decide between (None: none, a quarter of k, and k), and queries that
            share a decision.
        target: Keys beside the static terms that a query may read on average, above which `Route.over` asks for less; None:
            no budget term is kept.

    Attributes:
        router: The router.
        route: What it decided in the last forward pass, detached; None before.
        target: As given; may be set anew between passes.

    Raises:
        ValueError: as the two raise it, a layer that is not causal, or a negative target.

    >>> import torch
    >>> layer = RoutedSelfAttention(32, 4, Window(16) | TopBlocks(4, block=8), target=16)
    >>> loss = layer(torch.randn(1, 100, 32)).square().mean() + 0.1 * layer.budget_term()
    >>> bool((layer.spent_pairs() <= layer.pattern.pairs(100)).all())
    True
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        pattern: Pattern,
        *,
        budgets: Sequence[int] | None = None,
        run: int = 1,
        target: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dim, heads, pattern, **options)
        if not self.causal:
            raise ValueError("causal must be True: a router reads the first token of each run of queries")
        if target is not None and not (is_number(target) and 0 <= target < inf):
            raise ValueError(f"target must be a number of keys from 0 on, or None, got {target!r}")
        self.router = Router(dim, self.kv_heads, pattern, budgets=budgets, block=run)
        self.target = target
        self.route: Route | None = None
        self._term: Tensor | None = None
        self._last: tuple[Tensor, list[int] | None] | None = None

    def budget_term(self) -> Tensor:
        """`Route.over` of the last forward pass at `target`, with its gradient; taken once, then forgotten.

        Raises:
            ValueError: no `target`, or no forward pass in training mode, with gradients, since the last time.
        """
        if self.target is None:
            raise ValueError("budget_term: the layer has no target: give target=, the keys that a query may read")
        if self._term is None:
            raise ValueError(
                "budget_term: nothing to take: call the layer in training mode, with gradients, before each"
            )
        term, self._term = self._term, None
        return term

    def spent_pairs(self) -> Tensor:
        """The exact pairs that each example and KV head spent in the last forward pass (see `Router.spent_pairs`)."""
        if self.route is None or self._last is None:
            raise ValueError("spent_pairs: nothing was spent yet: call the layer first")
        return self.router.spent_pairs(self.route, self._last[0], cu_seqlens=self._last[1])

    def step(self, x: Tensor, cache: Cache) -> Tensor:
        raise NotImplementedError(
            "step: a routed layer reads whole sequences; decode without the router's class, or call it"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For `copy` and `pickle`: a term that was not taken belongs to a graph, which cannot be copied."""
        return {**self.__dict__, "_term": None}

    def _attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: list[int] | None, extra: dict[str, Any]
    ) -> Tensor:
        route = self.router(x, cu_seqlens=bounds)
        wanted = self.target is not None and self.training and torch.is_grad_enabled()
        self._term = route.over(self.target) if wanted else None
        self.route, self._last = route.detach(), (extra["selected"], bounds)
        return self.router.attend(route, q, k, v, cu_seqlens_q=bounds, implementation=self.implementation, **extra)


def budget_terms(model: nn.Module) -> Tensor:
    """The sum of the budget terms of all of a model's routed layers that have a target; each is taken, as by `budget_term`.

    Raises:
        ValueError: there is no such layer, or one has nothing to take.

    >>> model = torch.nn.Sequential(RoutedSelfAttention(32, 4, Window(16) | TopBlocks(4, block=8), target=16))
    >>> loss = model(torch.randn(1, 100, 32)).square().mean() + 0.1 * budget_terms(model)
    """
    layers = [layer for layer in model.modules() if isinstance(layer, RoutedSelfAttention) and layer.target is not None]
    if not layers:
        raise ValueError(f"budget_terms: {type(model).__name__} has no RoutedSelfAttention with a target")
    return torch.stack([layer.budget_term() for layer in layers]).sum()
