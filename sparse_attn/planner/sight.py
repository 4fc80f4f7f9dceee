"""What a stack can see: which layers look anywhere, where they stand, and how far information travels without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .records import Layer, Model


@dataclass(frozen=True)
class Run:
    """Neighbouring layers, `first` to `last`, both included; `mixing` of them move information between tokens."""

    first: int
    last: int
    mixing: int

    @property
    def length(self) -> int:
        """Layers in it."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Sight:
    """A stack, sorted by what its layers can look at. Layers are given by index, from 0 at the bottom.

    Attributes:
        layers: How many there are.
        context: The length that windows were held against; None: no length was known.
        mixing: Layers that move information between tokens at all (the others are MLPs that the config counts).
        everything: Layers whose queries see every earlier token. A window or chunk that is no shorter than the context
            is among them: at this length it hides nothing.
        chosen: Layers that reach any distance, but read only the keys that an index or a summary gives them.
        bounded: Layers with a window or a chunk shorter than the context.
        recurrent: Layers that keep a state of fixed size; hybrid layers are in `everything` or `bounded` as well.
        wide: Windows and chunks among `everything`: they hide nothing at this context.
        longest_run: The longest run without a layer of `everything`, of those with a mixing layer; None: no such run.
        reach: Tokens that can influence a query through attention alone, its own included; None: no bound.
            sum of (window - 1) over the layers, + 1, so layers x (window - 1) + 1 where all windows are equal.
            Chunks of one size that follow each other count once, since their borders coincide; where chunks and windows
            alternate it is a bound.
        exact: The widest window or chunk: what one hop can recall; None: no bound.
    """

    layers: int
    context: int | None
    mixing: tuple[int, ...]
    everything: tuple[int, ...]
    chosen: tuple[int, ...]
    bounded: tuple[int, ...]
    recurrent: tuple[int, ...]
    wide: tuple[int, ...]
    longest_run: Run | None
    reach: int | None
    exact: int | None

    @property
    def share(self) -> float:
        """Share of the mixing layers that see everything; 0 where nothing mixes."""
        return len(self.everything) / len(self.mixing) if self.mixing else 0.0

    @property
    def lowest(self) -> int | None:
        """Lowest layer that sees everything."""
        return self.everything[0] if self.everything else None

    @property
    def highest(self) -> int | None:
        """Highest layer that sees everything."""
        return self.everything[-1] if self.everything else None


def sight(model: Model, context: int | None = None) -> Sight:
    """Sort a model's layers by what they see.

    Args:
        model: From `describe`.
        context: Length that windows are held against; None: the advertised context.

    >>> from sparse_attn.planner import describe
    >>> mistral = {"model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 32, "num_attention_heads": 4}
    >>> mistral |= {"sliding_window": 4096, "max_position_embeddings": 32768, "num_key_value_heads": 2}
    >>> sight(describe(mistral)).reach == 32 * (4096 - 1) + 1
    True
    """
    context = model.advertised_context if context is None else context
    wide = {
        layer.index
        for layer in model.layers
        if context is not None and layer.kind in ("sliding", "chunked") and (layer.window or 0) >= context
    }
    everything = [layer.index for layer in model.layers if layer.sees_everything or layer.index in wide]
    bounded = [layer for layer in model.layers if _is_bounded(layer) and layer.index not in wide]
    chosen = [layer.index for layer in model.layers if _is_chosen(layer)]
    mixing = tuple(layer.index for layer in model.layers if layer.kind != "none")
    return Sight(
        layers=len(model.layers),
        context=context,
        mixing=mixing,
        everything=tuple(everything),
        chosen=tuple(chosen),
        bounded=tuple(layer.index for layer in bounded),
        recurrent=tuple(layer.index for layer in model.layers if layer.recurrence is not None),
        wide=tuple(sorted(wide)),
        longest_run=max(_runs(model.layers, set(everything)), key=lambda run: run.mixing, default=None),
        reach=None if everything or chosen or not model.causal else 1 + _travel(bounded),
        exact=None if everything or chosen else max((layer.window or 0 for layer in bounded), default=0),
    )


def hops(tokens: int, window: int) -> int:
    """Layers of this window that it takes to bring a token to a query `tokens - 1` positions later.

    >>> hops(4096, 4096), hops(4097, 4096), hops(32768, 4096)
    (1, 2, 9)
    """
    return max(1, -(-(tokens - 1) // (window - 1))) if window > 1 else 1


def _is_chosen(layer: Layer) -> bool:
    """Whether it reaches any distance without seeing everything: through an index, or through summaries."""
    return not layer.sees_everything and any(score.rule in ("full", "top", "summaries") for score in layer.scores)


def _is_bounded(layer: Layer) -> bool:
    other = layer.kind == "hybrid" and not layer.sees_everything and not _is_chosen(layer)
    return layer.kind in ("sliding", "chunked") or other


def _travel(layers: Sequence[Layer]) -> int:
    """How many positions back information moves in all these layers together, at most."""
    far, cut = 0, 0  # chunks of the size before cut at the same places: no further
    for layer in layers:
        window = layer.window or 1
        if layer.kind != "chunked" or window != cut:
            far += window - 1
        cut = window if layer.kind == "chunked" else 0
    return far


def _runs(layers: Sequence[Layer], seeing: set[int]) -> list[Run]:
    """The runs of layers outside `seeing` in which something mixes."""
    found, start = [], 0
    for index in range(len(layers) + 1):
        if index < len(layers) and index not in seeing:
            continue
        mixing = sum(layer.kind != "none" for layer in layers[start:index])
        if mixing:
            found.append(Run(start, index - 1, mixing))
        start = index + 1
    return found
