"""Learned anchors: blocks pooled to one key and one value each, and a running softmax over the blocks before each block."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .boundaries import Lengths, document_bounds, row_bounds


class AnchorState(NamedTuple):
    """A running softmax over blocks: all that is kept of the blocks read so far, whatever their number.

    Attributes:
        top: The largest logit so far, ``[*B, R, Hkv]``; float32 (float64 inputs: float64), as all four. Carries no
            gradient: the other three are only scaled by exp(-top).
        total: Sum of exp(logit - top), ``[*B, R, Hkv]``.
        key_sums, value_sums: Sums of exp(logit - top) times key or value, ``[*B, R, Hkv, D]``.
    """

    top: Tensor
    total: Tensor
    key_sums: Tensor
    value_sums: Tensor

    @property
    def row(self) -> tuple[Tensor, Tensor]:
        """The summary keys and values of these blocks, ``[*B, R, Hkv, D]``."""
        share = (1 / self.total)[..., None]
        return self.key_sums * share, self.value_sums * share


class AnchorWeights(NamedTuple):
    """What is learned of anchors.

    Attributes:
        queries: ``[Hkv, R, D]``.
        initial_logit, initial_k, initial_v: The element that stands before every document's first block, ``[Hkv, R]``
            and ``[Hkv, R, D]``: the first row is it alone, and no row is ever empty. Logits must be finite.
        pooling: ``[Hkv, D]``, the query of learned pooling; None: blocks are pooled by their mean.
    """

    queries: Tensor
    initial_logit: Tensor
    initial_k: Tensor
    initial_v: Tensor
    pooling: Tensor | None = None

    @property
    def initial(self) -> AnchorState:
        """The state before the first block, ``[R, Hkv]`` and ``[R, Hkv, D]``."""
        wide = torch.float64 if self.queries.dtype == torch.float64 else torch.float32
        logit = self.initial_logit.t().to(wide)
        top = logit.detach().contiguous()
        total = torch.exp(logit - top)  # 1, with the logit's gradient
        k, v = (total[..., None] * x.transpose(0, 1).to(wide) for x in (self.initial_k, self.initial_v))
        return AnchorState(top, total, k, v)

    @property
    def element(self) -> tuple[Tensor, None, Tensor, Tensor]:
        """The same state as the kernels read it where it lies: a total of 1, and a logit with its gradient."""
        return self.initial_logit.t(), None, self.initial_k.transpose(0, 1), self.initial_v.transpose(0, 1)


class Anchored(NamedTuple):
    """What `read_anchors` gives.

    Attributes:
        k, v: The keys and values that it was given. Used from there on (turned, attended to), their gradients and the
            anchors' are added up in one pass over memory.
        extra_k, extra_v: As `attention` takes them, ``[*B, N, R, Hkv, D]``.
        state: After the last block, ``[*B, ...]`` (packed: ``[documents, ...]``).
    """

    k: Tensor
    v: Tensor
    extra_k: Tensor
    extra_v: Tensor
    state: AnchorState


def pool_blocks(
    k: Float[Tensor, "*B S Hkv D"],
    v: Float[Tensor, "*B S Hkv D"],
    block: int,
    *,
    query: Float[Tensor, "Hkv D"] | None = None,
    scale: float | None = None,
    cu_seqlens: Lengths | None = None,
) -> tuple[Float[Tensor, "*B N Hkv D"], Float[Tensor, "*B N Hkv D"]]:
    """One key and one value for each block of keys.

    pooled[n,h] = sum_t w[t,h] x[t,h] over the tokens t of block n, x = k or v, with the same weights for both
    w = 1 / (tokens of the block), or softmax_t(scale * k[t,h] @ query[h])

    Args:
        k, v: ``[B, S, Hkv, D]``, packed ``[S, Hkv, D]`` with `cu_seqlens`; float16, bfloat16, float32 or float64.
        block: Tokens of a block, at least 1. N = ceil(S / block), counted in each document; a last block that is not
            complete is pooled from the tokens that it has.
        query: Learned pooling; None: mean. A query of zeros is the mean too.
        scale: Logit multiplier; ``D ** -0.5`` if None.
        cu_seqlens: Document boundaries ``[documents + 1]``; documents' blocks stand one after the other.

    Returns:
        Pooled keys and values in their dtype, summed in float32 (float64).

    Raises:
        ValueError: shapes that disagree, a block below 1, or boundaries that do not fit.

    Differentiable. Cost: O(S x Hkv x D).
    Source: learned pooling of blocks: Yuan et al. 2025, arXiv:2502.11089 (there by a small network).

    >>> pool_blocks(k, v, 128)[0].shape
    torch.Size([1, 3, 2, 64])
    """
    check_keys(k, v, block)
    _check_pooling(query, k)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    parts: list[tuple[Tensor, Tensor]] = []
    for start, stop in pairwise(document_bounds(cu_seqlens, k.shape[-3])):
        whole = start + (stop - start) // block * block
        for first, end, size in ((start, whole, block), (whole, stop, stop - whole)):
            if first < end or start == stop:
                own_k, own_v = (x[..., first:end, :, :].unflatten(-3, (-1, max(size, 1))) for x in (k, v))
                parts.append(_pool(own_k, own_v, query, scale))
    if not parts:
        return k[..., :0, :, :], v[..., :0, :, :]
    return torch.cat([part[0] for part in parts], -3), torch.cat([part[1] for part in parts], -3)


def _pool(k: Tensor, v: Tensor, query: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Pooled over the last dim but three."""
    wide_k, wide_v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
    if query is None:
        pooled_k, pooled_v = wide_k.mean(-3), wide_v.mean(-3)
    else:
        logits = (wide_k * (query.to(wide_k.dtype) * scale)).sum(-1, keepdim=True)
        weights = logits.softmax(-3)
        pooled_k, pooled_v = (weights * wide_k).sum(-3), (weights * wide_v).sum(-3)
    return pooled_k.to(k.dtype), pooled_v.to(v.dtype)


def anchor_scan(
    queries: Float[Tensor, "Hkv R D"],
    pooled_k: Float[Tensor, "*B N Hkv D"],
    pooled_v: Float[Tensor, "*B N Hkv D"],
    initial: AnchorState,
    *,
    causal: bool = True,
    scale: float | None = None,
    cu_rows: Sequence[int] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Tensor, "*B N R Hkv D"], Float[Tensor, "*B N R Hkv D"], AnchorState]:
    """A running softmax over blocks: what R queries read of the blocks strictly before each block.

    extra_k[n,r,h] = (exp(l0) k0 + sum_{m<n} exp(l[m,r,h]) pooled_k[m,h]) / (exp(l0) + sum_{m<n} exp(l[m,r,h]))
    l[m,r,h] = scale * queries[h,r] @ pooled_k[m,h];  l0, k0: the initial element; extra_v from pooled_v likewise

    Args:
        queries: ``[Hkv, R, D]``.
        pooled_k, pooled_v: ``[B, N, Hkv, D]``, packed ``[N, Hkv, D]`` with `cu_rows`.
        initial: What was read before: `AnchorWeights.initial`, or the state that an earlier call returned. Its tensors
            ``[R, Hkv, ...]`` serve every example (packed: every document), or there is one for each.
        causal: If False, every row of a document reads all of its N blocks: one row, repeated.
        scale: Logit multiplier; ``D ** -0.5`` if None.
        cu_rows: Boundaries of the documents among the N rows; every document starts from `initial`.
        implementation: "torch" (any device), "triton" (fused kernels for CUDA tensors; float16, bfloat16 or float32, D to
            256), or None: the kernels where they serve.

    Returns:
        Rows in the dtype of `pooled_k`, and the state after the last block (packed: ``[documents, R, Hkv, ...]``), from
        which a later call goes on.

    Raises:
        ValueError: shapes that disagree, boundaries that do not fit, or an unknown implementation.
        NotImplementedError: the named implementation does not serve the device, dtype or head dim.

    A row's bits hang on the blocks before it alone: a sequence read whole, in chunks, or block by block gives the same.
    Differentiable in everything, the state included. Cost: O(N x R x Hkv x D) time and memory, N steps one after another.
    Source: Katharopoulos et al. 2020, arXiv:2006.16236 (causal attention by state); Milakov and Gimelshein 2018,
    arXiv:1805.02867 (online softmax).
    """
    _check_scan(queries, pooled_k, pooled_v)
    bounds = None if cu_rows is None else document_bounds(cu_rows, pooled_k.shape[-3], name="cu_rows")
    if _serves(implementation, pooled_k):  # a block of one row is its own mean
        return _fused(pooled_k, pooled_v, queries, None, initial, 1, causal, scale, bounds)[2:]
    packed, lead = bounds is not None, pooled_k.shape[:-3]
    n_states = lead.numel() if bounds is None else len(bounds) - 1
    states = AnchorState(*_expanded(initial, n_states, queries))
    by_row = queries.transpose(0, 1).to(states.total.dtype) * (queries.shape[-1] ** -0.5 if scale is None else scale)
    k, v = (x.reshape(1 if packed else n_states, *x.shape[-3:]) for x in (pooled_k, pooled_v))
    found: list[tuple[Any, Any, Any]] = []
    for index, (start, stop) in enumerate(pairwise([0, k.shape[1]] if bounds is None else bounds)):
        own = AnchorState(*(x[index : index + 1] if packed else x for x in states))
        found.append(_scan_document(by_row, k[:, start:stop], v[:, start:stop], own, causal))
    if not found:
        empty = pooled_k.new_empty(0, queries.shape[1], *pooled_k.shape[-2:])
        return empty, empty, states
    all_k, all_v, after = (list(parts) for parts in zip(*found, strict=True))
    rows_k, rows_v = (torch.cat(rows, 1) if packed else rows[0] for rows in (all_k, all_v))
    state = AnchorState(*(torch.cat(parts) for parts in zip(*after, strict=True)))
    shape = (*lead, *rows_k.shape[1:])
    return (
        rows_k.to(pooled_k.dtype).reshape(shape),
        rows_v.to(pooled_v.dtype).reshape(shape),
        state if packed else _led(state, lead),
    )


def _scan_document(
    queries: Tensor, k: Tensor, v: Tensor, state: AnchorState, causal: bool
) -> tuple[Tensor, Tensor, AnchorState]:
    from ..cpu.anchor_scan import scan_blocks

    rows_k, rows_v, *after = scan_blocks(queries, k, v, *state)
    state = AnchorState(*after)
    if not causal:
        rows_k, rows_v = (x[:, None].expand(-1, k.shape[1], -1, -1, -1) for x in state.row)
    return rows_k, rows_v, state


def read_anchors(
    k: Float[Tensor, "*B S Hkv D"],
    v: Float[Tensor, "*B S Hkv D"],
    weights: AnchorWeights,
    block: int,
    *,
    causal: bool = True,
    initial: AnchorState | None = None,
    cu_seqlens: Lengths | None = None,
    implementation: str | None = None,
) -> Anchored:
    """The extra keys and values of an `Anchors` term: blocks pooled, then scanned.

    Args:
        k, v: Keys before any rotary embedding, and values; shapes of `pool_blocks`.
        weights: What is learned; see `AnchorWeights`.
        block: The term's block.
        causal: Row n reads the blocks before block n: a last block that is not complete is in no row. If False, every
            row reads all blocks of its document.
        initial: The state to go on from, at a block's first token; None: `weights.initial`.
        cu_seqlens: Document boundaries of packed keys.
        implementation: As for `anchor_scan`.

    Returns:
        Keys and values to go on with, ``[B, ceil(S / block), R, Hkv, D]`` extra keys and values in k's dtype, and the state.

    Raises:
        ValueError, NotImplementedError: as `pool_blocks` and `anchor_scan`.

    Cost: one pass over k and v, and O(S / block x R x Hkv x D).
    """
    check_keys(k, v, block)
    bounds = None if cu_seqlens is None else document_bounds(cu_seqlens, k.shape[-3])
    if _serves(implementation, k):
        _check_pooling(weights.pooling, k)
        _check_scan(weights.queries, k, v)
        start = weights.element if initial is None else initial
        return Anchored(*_fused(k, v, weights.queries, weights.pooling, start, block, causal, None, bounds))
    initial = weights.initial if initial is None else initial
    pooled_k, pooled_v = pool_blocks(k, v, block, query=weights.pooling, cu_seqlens=bounds)
    rows = None if bounds is None else row_bounds(bounds, block)
    scanned = anchor_scan(
        weights.queries, pooled_k, pooled_v, initial, causal=causal, cu_rows=rows, implementation="torch"
    )
    return Anchored(k, v, *scanned)


def anchor_keys(
    k: Float[Tensor, "*B S Hkv D"], v: Float[Tensor, "*B S Hkv D"], weights: AnchorWeights, block: int, **options: Any
) -> tuple[Float[Tensor, "*B N R Hkv D"], Float[Tensor, "*B N R Hkv D"]]:
    """extra_k and extra_v of `read_anchors`, whose arguments these are."""
    return read_anchors(k, v, weights, block, **options)[2:4]


def _fused(
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    pooling: Tensor | None,
    initial: AnchorState | tuple[Tensor, None, Tensor, Tensor],
    block: int,
    causal: bool,
    scale: float | None,
    bounds: list[int] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, AnchorState]:
    try:
        from ..kernels.anchors import fused_anchors
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise NotImplementedError("implementation 'triton' needs Triton, which is not installed; use 'torch'") from None

    lead = k.shape[:-3]
    count = lead.numel() if bounds is None else len(bounds) - 1
    whole_k, whole_v = (x.reshape(lead.numel(), *x.shape[-3:]) for x in (k, v))
    through_k, through_v, rows_k, rows_v, *after = fused_anchors(
        whole_k, whole_v, queries, pooling, _expanded(initial, count, queries),
        block=block, scale=k.shape[-1] ** -0.5 if scale is None else scale,
        cu_seqlens=None if bounds is None else tuple(bounds),
    )  # fmt: skip
    state = AnchorState(*after)
    if not causal:
        rows_k, rows_v = (_repeated(x.to(k.dtype), rows_k.shape[1], bounds, block) for x in state.row)
    if bounds is None:
        state = _led(state, lead)
    rows_k, rows_v = (x.reshape(*lead, *x.shape[1:]) for x in (rows_k, rows_v))
    return through_k.view_as(k), through_v.view_as(v), rows_k, rows_v, state


def _repeated(row: Tensor, n_rows: int, bounds: list[int] | None, block: int) -> Tensor:
    """Each example's or document's one row, for all of its blocks."""
    if bounds is None:
        return row[:, None].expand(-1, n_rows, -1, -1, -1)
    rows = row_bounds(bounds, block)
    which = [index for index, (start, stop) in enumerate(pairwise(rows)) for _ in range(start, stop)]
    return row[torch.tensor(which, dtype=torch.long, device=row.device)][None]


def _led(state: AnchorState, lead: torch.Size) -> AnchorState:
    return AnchorState(*(x.reshape(*lead, *x.shape[1:]) for x in state))


def _serves(implementation: str | None, k: Tensor) -> bool:
    """Whether the fused kernels run."""
    if implementation not in (None, "torch", "triton"):
        raise ValueError(f"implementation must be None, 'torch' or 'triton', got {implementation!r}")
    if implementation is None:
        return k.is_cuda and k.dtype != torch.float64 and k.shape[-1] <= 256
    return implementation == "triton"


def _expanded(
    state: AnchorState | tuple[Tensor, None, Tensor, Tensor], count: int, queries: Tensor
) -> tuple[Tensor, Any, Tensor, Tensor]:
    """The state for each example or document."""
    heads, r, d = queries.shape
    shapes = ((r, heads), (r, heads), (r, heads, d), (r, heads, d))
    found: list[Any] = []
    for name, tensor, shape in zip(AnchorState._fields, state, shapes, strict=True):
        if tensor is None:
            found.append(None)
            continue
        lead = tensor.shape[: tensor.dim() - len(shape)]
        if tuple(tensor.shape[len(lead) :]) != shape or lead.numel() not in (1, count):
            raise ValueError(
                f"initial.{name} must have shape {shape} (R, Hkv, ...), alone or behind {count} examples or documents, got "
                f"{tuple(tensor.shape)}"
            )
        found.append(tensor.reshape(-1, *shape).expand(count, *shape))
    return found[0], found[1], found[2], found[3]


def check_keys(k: Tensor, v: Tensor, block: int) -> None:
    """Refuse keys and values that are no pair, and a block that is none."""
    for name, tensor in (("k", k), ("v", v)):
        if not isinstance(tensor, Tensor) or tensor.dim() not in (3, 4) or not tensor.is_floating_point():
            got = f"{tuple(tensor.shape)}, {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a floating-point tensor of shape ([B,] S, Hkv, D), got {got}")
    if v.shape != k.shape or v.dtype != k.dtype:
        raise ValueError(f"v must have k's shape {tuple(k.shape)} and dtype {k.dtype}, got {tuple(v.shape)}, {v.dtype}")
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block must be a positive integer, got {block!r}")


def _check_pooling(query: Tensor | None, k: Tensor) -> None:
    if query is not None and query.shape != k.shape[-2:]:
        raise ValueError(f"query must have shape {tuple(k.shape[-2:])} (Hkv, D), got {tuple(query.shape)}")


def _check_scan(queries: Tensor, k: Tensor, v: Tensor) -> None:
    if v.shape != k.shape:
        raise ValueError(f"pooled_v must have pooled_k's shape {tuple(k.shape)}, got {tuple(v.shape)}")
    if queries.dim() != 3 or (queries.shape[0], queries.shape[2]) != tuple(k.shape[-2:]):
        raise ValueError(
            f"queries must have shape (Hkv, R, D) with Hkv={k.shape[-2]} and D={k.shape[-1]}, got {tuple(queries.shape)}"
        )
