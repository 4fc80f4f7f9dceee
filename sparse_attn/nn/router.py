"""A router: how much of what a head may look at, decided from the input, with a price."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from math import inf
from operator import or_
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..ops import attention
from ..ops.boundaries import Lengths, document_bounds
from ..ops.check_sizes import check_size
from ..ops.selected_pairs import selected_pairs
from ..patterns import Pattern, TopBlocks
from ..patterns.chosen import split_choice
from .check_layer import is_number


@dataclass(frozen=True, eq=False)
class Route:
    """What a router decided for each query and KV head.

    Attributes:
        blocks: How many blocks are read, of those chosen the best.
        anchors: Whether summary keys are read.
        decided: Which of the router's options that is.
        weights: Relaxed one-hot of the options, noise included: what carries the gradient.
        expected: The price of an option, in expectation over the probabilities of deciding for it (softmax of the logits), mean
            over queries and heads; differentiable. An option of k blocks, with or without r anchors, is priced at k * block
            (+ r) keys: what is read beside the static terms, which are always read; fewer where there are fewer blocks, or
            where a static term names their keys already. `Router.spent_pairs` counts exactly, static terms included.
        most: The price of the dearest option.
    """

    blocks: Int[Tensor, "*B T Hkv"]
    anchors: Bool[Tensor, "*B T Hkv"]
    decided: Int[Tensor, "*B T Hkv"]
    weights: Float[Tensor, "*B T Hkv options"]
    expected: Float[Tensor, ""]
    most: int

    def limit(self, selected: Int[Tensor, "*B T Hkv K"]) -> Int[Tensor, "*B T Hkv K"]:
        """The best of the chosen blocks, as many as were decided; selectors hand them out best first."""
        rank = torch.arange(selected.shape[-1], device=selected.device)
        return selected.masked_fill(rank >= self.blocks[..., None], -1)

    def detach(self) -> "Route":
        """The same without the autograd graph, which would keep the activations of the pass that it comes from."""
        return replace(self, weights=self.weights.detach(), expected=self.expected.detach())

    def over(self, budget: float) -> Float[Tensor, ""]:
        """The budget term of a loss: `expected` above `budget` keys for each query, as a share of the dearest option.

        0 at or below it. Added to a loss with a weight, it drives heads that gain little to cheap options.
        """
        return (self.expected - budget).clamp(min=0) / max(self.most, 1)


class Router(nn.Module):
    """Decides, for each KV head and run of queries, between a few options: k blocks, with or without anchors.

    logits = W x[first token of the run];  decided = argmax(logits + Gumbel noise) (training), argmax(logits) (otherwise)
    y = attention with what was decided;  dy / dw_o = attention with option o,  w = softmax((logits + noise) / temperature)

    So an option becomes likelier where what it would have given improves the loss, and the budget term (`Route.over`) makes
    dear ones less likely. What was decided is realised: blocks beyond it are taken out of `selected`, and cost nothing.

    Args:
        dim: Of the layer's input.
        kv_heads: Heads that decide.
        pattern: ``Window(...) | TopBlocks(k, ...)``, with `rows` 1 and some static term; and `Anchors`, if they are to be
            an option.
        budgets: Numbers of blocks to decide between, from 0 (static terms only) to k; None: none, a quarter of k, and k.
        block: Queries that share a decision, made from the first one's input: no later token is read.
        temperature: Of the probabilities that carry the gradient.

    Raises:
        ValueError: no `TopBlocks`, one with rows > 1, no static term, budgets that are none, or an argument of another kind
            than these.

    Cost: one linear map, and a second pass of attention where anchors are an option. Training: one more pass forward for
    each option, none backward. Nothing waits for the device but boundaries of documents that it has not read before.
    Source: Jang et al. 2016, arXiv:1611.01144 (straight-through Gumbel softmax).

    >>> pattern = Window(64) | TopBlocks(4, block=32)
    >>> router = Router(16, 2, pattern, budgets=(0, 1, 4), block=32)
    >>> route = router(torch.randn(1, 300, 16))
    >>> out = router.attend(route, q, k, v, select_blocks(q, k, pattern))
    >>> loss = out.square().mean() + 0.1 * route.over(budget=40)
    """

    _counts: Tensor
    _with_anchors: Tensor
    _prices: Tensor

    def __init__(
        self,
        dim: int,
        kv_heads: int,
        pattern: Pattern,
        *,
        budgets: Sequence[int] | None = None,
        block: int = 1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_size("dim", dim)
        check_size("kv_heads", kv_heads)
        choice = split_choice(pattern) if isinstance(pattern, Pattern) else None
        if choice is None or not isinstance(choice.term, TopBlocks) or choice.term.rows != 1:
            raise ValueError(
                f"pattern must have a TopBlocks term with rows=1, whose blocks are routed, got {pattern!r}"
            )
        anchors = [term for term in pattern.terms if term.extra_keys]
        own = [term for term in ([] if choice.static is None else choice.static.terms) if not term.extra_keys]
        if not own:
            raise ValueError(
                f"pattern must have a static term, such as Window(512), that is always read, got {pattern!r}"
            )
        check_size("block", block)
        if not (is_number(temperature) and 0 < temperature < inf):
            raise ValueError(f"temperature must be a positive number, got {temperature!r}")
        counts = _counts(budgets, choice.term)
        self.pattern, self.kv_heads, self.block, self.temperature = pattern, kv_heads, block, temperature
        self.base: Pattern = reduce(or_, own)
        self.base_with_anchors: Pattern = reduce(or_, [*own, *anchors])
        self.without_anchors: Pattern = reduce(or_, [*own, *(t for t in pattern.terms if split_choice(t) is not None)])
        self.r = anchors[0].extra_keys if anchors else 0
        self.options = [
            (count, with_anchors) for with_anchors in ((False, True) if anchors else (False,)) for count in counts
        ]
        self.prices = [count * choice.term.block + self.r * with_anchors for count, with_anchors in self.options]
        self.score = nn.Linear(dim, kv_heads * len(self.options))
        # On the weights' device with them, so that no call copies; made anew from the arguments, so no part of the state.
        for name, values in self._tables():
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def _tables(self) -> list[tuple[str, list[int] | list[bool]]]:
        counts, anchors = [count for count, _ in self.options], [with_anchors for _, with_anchors in self.options]
        return [("_counts", counts), ("_with_anchors", anchors), ("_prices", self.prices)]

    def _apply(self, fn: Any, recurse: bool = True) -> "Router":
        """Where a module goes its tables follow, and not what memory holds that `to_empty` made room in."""
        super()._apply(fn, recurse)
        for name, values in self._tables():
            setattr(self, name, torch.tensor(values, device=getattr(self, name).device))
        return self

    def forward(self, x: Float[Tensor, "*B T C"], *, cu_seqlens: Lengths | None = None) -> Route:
        """Decide for whole sequences ``[B, T, dim]``, packed ``[T, dim]`` with `cu_seqlens`: runs start anew in each.

        Raises:
            ValueError: x of another shape, or boundaries that do not fit.
        """
        if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[-1] != self.score.in_features:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a tensor of shape ([B,] T, {self.score.in_features}), got {got}")
        heads, run = _runs(document_bounds(cu_seqlens, x.shape[-2]), self.block, x.device)
        scores = self.score(x[..., heads, :]).unflatten(-1, (self.kv_heads, -1))
        logits = scores.to(torch.promote_types(scores.dtype, torch.float32))  # autocast's, too
        noisy = logits
        if self.training:  # one draw for a run, in float32: narrower numbers near 1 are 1, whose noise is infinite
            uniform = torch.rand_like(logits, dtype=torch.float32)
            noisy = logits - torch.log(-torch.log(uniform.clamp(min=1e-20)) + 1e-20)
        expected = (logits.softmax(-1) * self._prices).sum(-1)[..., run, :]
        noisy = noisy[..., run, :, :]
        decided = noisy.argmax(-1)
        return Route(
            blocks=self._counts[decided],
            anchors=self._with_anchors[decided],
            decided=decided,
            weights=torch.softmax(noisy / self.temperature, -1),
            expected=expected.mean() if expected.numel() else expected.sum(),
            most=max(self.prices),
        )

    def attend(
        self,
        route: Route,
        q: Float[Tensor, "*B T Hq D"],
        k: Float[Tensor, "*B T Hkv D"],
        v: Float[Tensor, "*B T Hkv D"],
        selected: Int[Tensor, "*B T Hkv K"],
        *,
        extra_k: Tensor | None = None,
        extra_v: Tensor | None = None,
        **options: Any,
    ) -> Float[Tensor, "*B T Hq D"]:
        """Attention with what was decided; `options` (causal, cu_seqlens_q, ...) are those of `attention`."""
        group = q.shape[-2] // k.shape[-2]
        extra: dict[str, Any] = {"extra_k": extra_k, "extra_v": extra_v}

        def read(chosen: Tensor, with_anchors: bool) -> Tensor:
            beside = dict(extra) if with_anchors else {}
            if chosen.shape[-1]:
                pattern, beside["selected"] = self.pattern if with_anchors else self.without_anchors, chosen
            else:  # an option of no blocks: one pass over the static terms
                pattern = self.base_with_anchors if with_anchors else self.base
            out = attention(q, k, v, pattern, **beside, **options)
            assert isinstance(out, Tensor)
            return out

        out = read(route.limit(selected), False)
        if self.r:
            with_anchors = read(route.limit(selected), True)
            out = torch.where(route.anchors.repeat_interleave(group, -1)[..., None], with_anchors, out)
        if not (self.training and torch.is_grad_enabled() and route.weights.requires_grad):
            return out
        weights = (
            (route.weights - route.weights.detach()).repeat_interleave(group, -2).to(out.dtype)
        )  # zeros, with a gradient
        for number, (count, with_anchors_too) in enumerate(self.options):
            with torch.no_grad():
                other = read(selected[..., :count], with_anchors_too)
            out = out + weights[..., number, None] * other
        return out

    def spent_pairs(
        self,
        route: Route,
        selected: Int[Tensor, "*B T Hkv K"],
        *,
        causal: bool = True,
        cu_seqlens: Sequence[int] | None = None,
    ) -> Int[Tensor, "*B Hkv"]:
        """The exact number of pairs that each example and KV head spent, summary keys included (see `ops.selected_pairs`)."""
        pairs = selected_pairs(
            route.limit(selected), self.without_anchors, selected.shape[-3], causal=causal, cu_seqlens_q=cu_seqlens
        )
        return pairs + self.r * route.anchors.sum(-2).cpu()


def _counts(budgets: Sequence[int] | None, term: TopBlocks) -> list[int]:
    """Numbers of blocks to decide between, in order."""
    if budgets is None:
        return sorted({0, max(1, term.k // 4), term.k})
    whole = isinstance(budgets, Sequence) and not isinstance(budgets, str)
    if not whole or any(isinstance(count, bool) or not isinstance(count, int) for count in budgets):
        raise ValueError(f"budgets must be numbers of blocks such as (0, {term.k}), got {budgets!r}")
    counts = sorted(set(budgets))
    if not counts or counts[0] < 0 or counts[-1] > term.k:
        raise ValueError(f"budgets must lie between 0 and {term!r}'s k, at least one, got {tuple(budgets)}")
    return counts


def _runs(bounds: list[int], block: int, device: torch.device) -> tuple[Int[Tensor, " runs"], Int[Tensor, " T"]]:
    """Where each run of queries begins, and the run of each query."""
    if len(bounds) == 2:
        return torch.arange(0, bounds[1], block, device=device), torch.arange(bounds[1], device=device) // block
    heads = [torch.arange(start, stop, block) for start, stop in pairwise(bounds)]
    run, count = [], 0
    for (start, stop), own in zip(pairwise(bounds), heads, strict=True):
        run.append(count + torch.arange(stop - start) // block)
        count += len(own)
    nothing = torch.arange(0)
    return torch.cat([nothing, *heads]).to(device), torch.cat([nothing, *run]).to(device)
