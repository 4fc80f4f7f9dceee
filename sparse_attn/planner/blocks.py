"""What layers are built of: mixers of tokens and MLPs, each with its memory, arithmetic and parameters.

A mixer or an MLP is described by widths alone; which widths a family means, its file in `families/` says. Formulas
count a matrix [in, out] as in x out parameters; a product with it costs 2 x in x out FLOPs for each token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .records import Kind, Layer, Memory, Scores, Weights


@dataclass(frozen=True)
class Mixer:
    """What moves information between tokens in one layer; fields as in `Layer`."""

    kind: Kind
    window: int | None = None
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    recurrence: str | None = None
    memory: tuple[Memory, ...] = ()
    scores: tuple[Scores, ...] = ()
    weights: tuple[Weights, ...] = ()

    def beside(self, other: Mixer) -> Mixer:
        """This attention and a recurrence side by side in one layer."""
        return replace(
            self,
            kind="hybrid",
            recurrence=other.recurrence,
            memory=self.memory + other.memory,
            scores=self.scores + other.scores,
            weights=self.weights + other.weights,
        )


NOTHING = Mixer("none")


def attention(
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    value_dim: int | None = None,
    window: int | None = None,
    chunk: int | None = None,
    extra: int = 0,
    gate: int = 0,
) -> Mixer:
    """Softmax attention with grouped queries over all keys, a window of W keys, or a chunk.

    Kept for each token: kv_heads x (head_dim + value_dim) numbers. Parameters: the four projections, `gate` columns
    more in the query's projection, and `extra` numbers (biases, norms of queries and keys, sinks).
    """
    value_dim = head_dim if value_dim is None else value_dim
    limit = window if window is not None else chunk
    ring = None if limit is None else "window" if window is not None else "chunk"
    rule = "full" if limit is None else "window" if window is not None else "chunk"
    matrices = hidden * (heads * head_dim + gate + kv_heads * (head_dim + value_dim)) + heads * value_dim * hidden
    return Mixer(
        kind="full" if limit is None else "sliding" if window is not None else "chunked",
        window=limit,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        memory=(
            Memory("keys", kv_heads * head_dim, limit=limit, heads=kv_heads, ring=ring),  # type: ignore[arg-type]
            Memory("values", kv_heads * value_dim, limit=limit, heads=kv_heads, ring=ring),  # type: ignore[arg-type]
        ),
        scores=(Scores("attention", 2 * heads * (head_dim + value_dim), rule, limit or 0),),  # type: ignore[arg-type]
        weights=(Weights("attention", matrices, matrices), *small("attention", extra)),
    )


def gated_mlp(hidden: int, width: int, *, bias: bool = False) -> tuple[Weights, ...]:
    """Gate, up and down: 3 x hidden x width."""
    return (whole("mlp", 3 * hidden * width), *small("mlp", (2 * width + hidden) * bias))


def plain_mlp(hidden: int, width: int, *, bias: bool = False) -> tuple[Weights, ...]:
    """Up and down: 2 x hidden x width."""
    return (whole("mlp", 2 * hidden * width), *small("mlp", (width + hidden) * bias))


def moe(
    hidden: int,
    width: int,
    experts: int,
    chosen: int,
    *,
    shared: int = 0,
    matrices: int = 3,
    expert_bias: int = 0,
    router_bias: int = 0,
    shared_gate: bool = False,
) -> tuple[Weights, ...]:
    """Routed experts of `matrices` matrices [hidden, width] each, a router, and one shared expert of width `shared`.

    A token passes `chosen` of the experts. `expert_bias`: further numbers in each expert.
    """
    one = matrices * hidden * width
    parts = [
        Weights("experts", experts * one, chosen * one),
        whole("router", experts * hidden, linear=False),
        *small("router", router_bias),
    ]
    if expert_bias:
        parts.append(Weights("experts", experts * expert_bias, chosen * expert_bias, linear=False))
    if shared:
        parts.append(whole("shared experts", matrices * hidden * shared))
        parts += small("router", hidden * shared_gate)
    return tuple(parts)


def whole(part: str, count: int, *, linear: bool = True) -> Weights:
    """Parameters that every token passes."""
    return Weights(part, count, count, linear=linear)


def small(part: str, count: int) -> tuple[Weights, ...]:
    """Biases, norms and the like: never packed by a quantiser, nothing to multiply; () if there are none."""
    return (Weights(part, count, count, linear=False, computes=False),) if count else ()


def build_layer(
    index: int,
    mixer: Mixer,
    feed: Iterable[Weights],
    *,
    norms: int,
    source: str,
    rope: str = "rope",
    rope_theta: float | None = None,
    shares_with: int | None = None,
    note: str = "",
) -> Layer:
    """A layer of a mixer and an MLP (or MoE); `norms` counts the numbers in its norms."""
    feed = tuple(feed)
    parts = {weights.part for weights in feed}
    shared = shares_with is not None
    return Layer(
        index=index,
        kind=mixer.kind,
        source=source,
        window=mixer.window,
        heads=mixer.heads,
        kv_heads=mixer.kv_heads,
        head_dim=mixer.head_dim,
        value_dim=mixer.value_dim,
        recurrence=mixer.recurrence,
        rope=rope if mixer.heads else "none",
        rope_theta=rope_theta if mixer.heads and rope != "none" else None,
        mlp="moe" if "experts" in parts else "dense" if parts else "none",
        memory=() if shared else mixer.memory,
        scores=mixer.scores,
        weights=mixer.weights + feed + small("norms", norms),
        shares_with=shares_with,
        note=note,
    )
