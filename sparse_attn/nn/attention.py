"""A self-attention layer through a pattern: projections, rotary positions, grouped heads, and what a pattern learns."""

from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..ops import attention
from ..ops.boundaries import Lengths, document_bounds, row_bounds
from ..patterns import Anchors, AnchorTree, Full, Pattern
from ..patterns.chosen import split_choice
from ..patterns.hashed import split_hashed
from ..patterns.refusals import check_direction
from .anchor_tree import AnchorTreeKeys
from .anchors import AnchorKeys
from .check_layer import check_options, check_shapes
from .rope import rotate
from .selection_loss import selection_loss
from .selector import BlockSelector

_ONE_ROW = 1 << 40  # a block that holds whatever keys there are


@runtime_checkable
class Cache(Protocol):
    """What `step` asks of a cache; `sparse_attn.cache.AttentionCache` is one."""

    pattern: Pattern
    length: int
    anchors: Any
    blocks: Any

    def append(self, k: Tensor, v: Tensor) -> None: ...

    def kept(self) -> tuple[Tensor, Tensor]: ...

    def seen_by_last(self) -> Tensor | None: ...


class SparseSelfAttention(nn.Module):
    """Self-attention whose queries see what a pattern keeps, with the pattern's learned parts inside.

    q, k, v = projections of x;  q, k turned by position;  y = W_out attention(q, k, v, pattern)

    Anchors read keys before they are turned. Row n of them is then turned to position n * block, the first of the queries
    that see it: a summary stands at most a block away from its reader, wherever both are in the sequence.

    With `TopBlocks` a learned selector chooses the blocks, and its coarse attention is added by a gate (`BlockSelector`). It
    compresses keys before they are turned, and turns the result to the middle of the block.

    Args:
        dim: Of the hidden states.
        heads, kv_heads: Query heads, and key and value heads that they share; `kv_heads` defaults to `heads`.
        pattern: What each token sees, e.g. ``Window(512) | Anchors(64)``.
        head_dim: ``dim // heads`` if None.
        causal: Tokens see no later ones.
        rope_theta: Base of the rotary embedding; None: no positions.
        rope_fraction: Share of the head dim that is turned; the rest matches by content alone.
        pooling: Of the anchors' blocks, "learned" or "mean".
        implementation: Of attention; None chooses.

    Raises:
        ValueError: sizes that do not fit together, or an argument of another kind than these.
        NotImplementedError: an `AnchorTree` that is not causal.

    >>> layer = SparseSelfAttention(64, 4, Window(16) | Anchors(8, block=16), kv_heads=2)
    >>> layer(torch.randn(1, 100, 64)).shape
    torch.Size([1, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        pattern: Pattern,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = True,
        rope_theta: float | None = 10000.0,
        rope_fraction: float = 1.0,
        pooling: str = "learned",
        implementation: str | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        check_shapes(dim, heads, kv_heads, head_dim)
        check_options(pattern, causal, rope_theta, rope_fraction, pooling, implementation)
        head_dim = dim // heads if head_dim is None else head_dim
        self.dim = dim
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.pattern, self.causal, self.implementation = pattern, causal, implementation
        self.rope_theta = rope_theta
        self.rope_dims = 2 * min(round(rope_fraction * head_dim / 2), head_dim // 2)
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.out_proj = nn.Linear(heads * head_dim, dim, bias=False)
        # The pattern's learned parts, one module a term that has any; `_beside` and `_beside_last` hand on what they give.
        self.anchors: AnchorKeys | AnchorTreeKeys | None = None
        for term in pattern.terms:
            if isinstance(term, Anchors):
                options: dict[str, Any] = {"r": term.r, "block": term.block, "pooling": pooling, "causal": causal}
                self.anchors = AnchorKeys(kv_heads, head_dim, **options)
            elif isinstance(term, AnchorTree):
                check_direction(term, causal)
                self.anchors = AnchorTreeKeys(kv_heads, head_dim, term)
        chooses = split_choice(pattern) is not None
        self.by_content = chooses or split_hashed(pattern) is not None
        self.selector = BlockSelector(dim, heads, kv_heads, head_dim, pattern) if chooses else None

    def forward(self, x: Float[Tensor, "*B T C"], *, cu_seqlens: Lengths | None = None) -> Float[Tensor, "*B T C"]:
        """The layer over whole sequences.

        Args:
            x: ``[B, T, dim]``, packed ``[T, dim]`` with `cu_seqlens`.
            cu_seqlens: Document boundaries; positions, blocks and attention are each document's own. The host waits for a
                tensor on a device once, whatever the number of layers that read it (as `attention` says).

        Raises:
            ValueError: x of another shape, or boundaries that do not fit.
        """
        self._check_input(x, packed=cu_seqlens is not None)
        bounds = None if cu_seqlens is None else document_bounds(cu_seqlens, x.shape[0])
        q, k, v = self._project(x)
        positions = _positions(x.shape[-2], bounds, x.device)
        k, v, extra = self._beside(k, v, bounds)
        q_turned, k_turned, coarse = self._turn(q, positions), self._turn(k, positions), None
        if self.selector is not None:
            blocks = self.selector.compress(k, v, cu_seqlens=bounds)
            self.selector._lesson = None
            if self.selector.taught_at is not None and self.training and torch.is_grad_enabled():
                self.selector._lesson = self._lesson(q_turned, k_turned, blocks[0], self.selector.taught_at, bounds)
            coarse, extra["selected"] = self._choose(x, q_turned, blocks, k.shape[-3], bounds)
        return self._joined(self._attend(x, q_turned, k_turned, v, bounds, extra), coarse)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "B T C"], cache: Cache) -> Float[Tensor, "B T C"]:
        """The layer over the next T tokens of sequences whose earlier ones a cache holds.

        A first chunk is read at once; later ones token by token, each with the keys that the pattern keeps for it. For
        inference: no gradient passes. A token that sees nothing gets what attention defines for it: zeros.

        Args:
            x: ``[B, T, dim]``, at least one token.
            cache: ``AttentionCache(pattern)``, new or as the last step left it.

        Raises:
            ValueError: x of another shape or batch size, or a cache that is none or another pattern's.
            NotImplementedError: a layer that is not causal.
        """
        if not self.causal:
            raise NotImplementedError("step: a bidirectional layer reads whole sequences: call it without a cache")
        self._check_input(x, packed=False)
        if x.shape[1] == 0:
            raise ValueError("x must hold at least one token, got none")
        self._check_cache(cache)
        if cache.length == 0 and x.shape[1] > 1:
            q, k, v = self._project(x)
            positions = _positions(x.shape[1], None, x.device)
            k_turned = self._turn(k, positions)
            extra: dict[str, Any] = {}
            if self.anchors is not None:
                extra_k, extra_v = cache.anchors.extend(k, v, self.anchors.weights)
                extra = self._placed(extra_k, extra_v, None)
            cache.append(k_turned, v)
            q_turned, coarse = self._turn(q, positions), None
            if self.selector is not None:
                blocks = cache.blocks.extend(k, v, self.selector.pooling)
                coarse, extra["selected"] = self._choose(x, q_turned, blocks, cache.length, None)
            out = attention(q_turned, k_turned, v, self.pattern, implementation=self.implementation, **extra)
            return self._joined(out, coarse)
        return torch.cat([self._step_one(token, cache) for token in x.split(1, 1)], 1)

    def _step_one(self, x: Float[Tensor, "B 1 C"], cache: Cache) -> Float[Tensor, "B 1 C"]:
        q, k, v = self._project(x)
        at = torch.full((1,), cache.length, device=x.device)
        seen: Pattern = Full()
        extra = self._beside_last(k, v, cache)
        if extra:
            seen = seen | Anchors(extra["extra_k"].shape[2], _ONE_ROW)
        cache.append(self._turn(k, at), v)
        keys, values = cache.kept()
        q_turned, coarse = self._turn(q, at), None
        if self.selector is not None:
            blocks = cache.blocks.extend(k, v, self.selector.pooling)
            coarse, extra["selected"] = self._choose(x, q_turned, blocks, cache.length, None)
        if self.by_content:  # every key is there: blocks and ranks keep their numbers, and static terms their positions
            own = [term for term in self.pattern.terms if not term.extra_keys]
            seen = reduce(or_, own if self.anchors is None else [*own, Anchors(extra["extra_k"].shape[2], _ONE_ROW)])
        else:
            chosen = cache.seen_by_last()
            if chosen is not None and len(chosen) == 0:
                if not extra:
                    return self._joined(torch.zeros_like(q), None)
                # Attention asks for a key; this one stands there unseen, beside anchors alone.
                keys, values = keys[:, -1:], values[:, -1:]
                seen = Anchors(extra["extra_k"].shape[2], _ONE_ROW)
            elif chosen is not None:
                chosen = chosen.to(keys.device)
                keys, values = keys[:, chosen], values[:, chosen]
        out = attention(q_turned, keys, values, seen, implementation=self.implementation, **extra)
        return self._joined(out, coarse)

    def _check_input(self, x: Tensor, packed: bool) -> None:
        form = f"(T, {self.dim}) with cu_seqlens" if packed else f"(B, T, {self.dim})"
        if not isinstance(x, Tensor) or x.dim() != (2 if packed else 3) or x.shape[-1] != self.dim:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a tensor of shape {form}, got {got}")

    def _check_cache(self, cache: Cache) -> None:
        wanted = f"cache must be AttentionCache({self.pattern!r}) of sparse_attn.cache"
        if not isinstance(cache, Cache):
            raise ValueError(f"{wanted}, got {type(cache).__name__}")
        if cache.pattern != self.pattern:
            raise ValueError(f"{wanted}, the layer's own pattern, got a cache for {cache.pattern!r}")

    def _attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: list[int] | None, extra: dict[str, Any]
    ) -> Tensor:
        """Attention over whole sequences; `extra` is what stands beside their own keys, and what was chosen."""
        out = attention(
            q, k, v, self.pattern, causal=self.causal, cu_seqlens_q=bounds, implementation=self.implementation, **extra
        )
        assert isinstance(out, Tensor)
        return out

    def _choose(
        self, x: Tensor, q_turned: Tensor, blocks: tuple[Tensor, Tensor], n_keys: int, bounds: list[int] | None
    ) -> tuple[Tensor, Tensor]:
        """The selector's gated coarse attention, and the blocks that it chose; blocks as they were compressed."""
        assert self.selector is not None
        return self.selector(  # type: ignore[no-any-return]
            x, q_turned, self._middle(blocks[0], bounds), blocks[1], n_keys=n_keys, causal=self.causal,
            cu_seqlens_q=bounds, cu_seqlens_k=bounds,
        )  # fmt: skip

    def _middle(self, keys: Tensor, bounds: list[int] | None) -> Tensor:
        """Compressed keys, turned to the middle of their blocks."""
        assert self.selector is not None
        size = self.selector.block
        rows = _positions(keys.shape[-3], None if bounds is None else row_bounds(bounds, size), keys.device)
        return self._turn(keys, rows * size + size // 2)

    def _lesson(self, q: Tensor, k: Tensor, blocks: Tensor, at: Tensor, bounds: list[int] | None) -> Tensor:
        if bounds is not None or not self.causal:
            raise NotImplementedError("taught_at: lessons are for causal sequences that are not packed: set it to None")
        return selection_loss(q, k, self._middle(blocks, None), at, self.pattern)

    def _joined(self, out: Any, coarse: Tensor | None) -> Tensor:
        whole = out if coarse is None else out + coarse
        return self.out_proj(whole.flatten(-2))  # type: ignore[no-any-return]

    def _beside(self, k: Tensor, v: Tensor, bounds: list[int] | None) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Keys and values to go on with, and what attention takes beside them, made from keys before they are turned."""
        if self.anchors is None:
            return k, v, {}
        k, v, extra_k, extra_v = self.anchors(k, v, cu_seqlens=bounds)[:4]
        return k, v, self._placed(extra_k, extra_v, bounds)

    def _beside_last(self, k: Tensor, v: Tensor, cache: Cache) -> dict[str, Any]:
        """The same for one token more."""
        if self.anchors is None:
            return {}
        row = cache.length // self.anchors.block
        extra_k, extra_v = cache.anchors.extend(k, v, self.anchors.weights)
        return self._placed(extra_k, extra_v, None, first_row=row)

    def _placed(self, extra_k: Tensor, extra_v: Tensor, bounds: list[int] | None, first_row: int = 0) -> dict[str, Any]:
        """Rows of anchors, turned to where the queries begin that see them."""
        assert self.anchors is not None
        block = self.anchors.block
        n_rows, r = extra_k.shape[-4:-2]
        rows = _positions(n_rows, None if bounds is None else row_bounds(bounds, block), extra_k.device) + first_row
        turned = self._turn(extra_k.flatten(-4, -3), (rows * block).repeat_interleave(r))
        return {"extra_k": turned.unflatten(-3, (n_rows, r)), "extra_v": extra_v}

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return tuple(t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))  # type: ignore[return-value]

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        return x if self.rope_theta is None else rotate(x, positions, self.rope_theta, dims=self.rope_dims)


def _positions(n: int, bounds: list[int] | None, device: torch.device) -> Int[Tensor, " T"]:
    """Each token's position in its document."""
    if bounds is None:
        return torch.arange(n, device=device)
    parts = [torch.arange(stop - start) for start, stop in pairwise(bounds)]
    return torch.cat(parts or [torch.arange(0)]).to(device)  # one copy, however many documents
