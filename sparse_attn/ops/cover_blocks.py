"""Blocks that cover a share of the attention mass, for each tile and query head: as many as the head and its input need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..patterns import CoverBlocks, Pattern, Sinks, VerticalSlash
from ..patterns.chosen import Choice, split_choice
from ..patterns.documents import Document, split_documents
from ..patterns.layout import Groups
from ..patterns.parts import Interval
from ..patterns.refusals import check_direction
from .antidiagonal import antidiagonal_mass
from .select_blocks import _bounds, candidate_blocks
from .vertical_slash import crossed_blocks, sampled_attention, stripes_and_diagonals

Kept = Iterator[tuple[slice, Bool[Tensor, "B Hq tiles blocks"]]]


@torch.no_grad()
def covering_blocks(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    patterns: Sequence[Pattern],
    *,
    causal: bool,
    bounds: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
) -> Int[Tensor, "B N Hq K"]:
    """The blocks of a `CoverBlocks` or `VerticalSlash` term, in ascending order, -1 after a row's last.

    Args:
        q: Scaled queries.
        patterns: One for all KV heads, or one for each; all with the same such term.
        bounds: Boundaries of packed documents.

    Raises:
        NotImplementedError: not causal.

    K is what the neediest tile of all took: reading it waits for the device.
    """
    choices = [choice for pattern in patterns if (choice := split_choice(pattern)) is not None]
    check_direction(choices[0].term, causal)
    intervals = [None if own.static is None else Groups(own.static, causal).interval for own in choices]
    pieces = [torch.full((q.shape[0], 0, q.shape[2], 0), -1, dtype=torch.int32, device=q.device)]
    for document in split_documents(q.shape[1], k.shape[1], *bounds):
        if document.n_queries:
            own_q, own_k = q[:, document.q_start : document.q_stop], k[:, document.k_start : document.k_stop]
            pieces += [_numbers(kept) for _, kept in _kept(own_q, own_k, choices, intervals, document)]
    width = max(piece.shape[-1] for piece in pieces)
    return torch.cat([torch.nn.functional.pad(piece, (0, width - piece.shape[-1]), value=-1) for piece in pieces], 1)


def _kept(q: Tensor, k: Tensor, choices: list[Choice], intervals: list[Interval | None], document: Document) -> Kept:
    term, heads = choices[0].term, q.shape[2]
    key_stop = (torch.arange(-(-k.shape[1] // term.block), device=q.device) + 1) * term.block

    def candidates(part: slice) -> Tensor:
        own = [
            candidate_blocks(choice, interval, document, part, causal=True, device=q.device)
            & (key_stop > _sinks(choice))
            for choice, interval in zip(choices, intervals, strict=True)
        ]
        return torch.stack(own).repeat_interleave(heads // len(own), 0)

    if isinstance(term, CoverBlocks):
        for part, mass in antidiagonal_mass(q, k, rows=term.rows, block=term.block, stride=term.stride):
            yield part, heaviest_blocks(mass, candidates(part), term.coverage)
    else:
        assert isinstance(term, VerticalSlash)
        part = slice(0, term.tiles(document.n_queries, document.n_keys))
        allowed = candidates(part)
        found = allowed[None] if term.coverage == 1 else _crossed(q, k, term, intervals, document) & allowed
        yield part, found.expand(q.shape[0], -1, -1, -1)


def _sinks(choice: Choice) -> int:
    """The first keys that the static part lets every query see: blocks of them are kept anyway."""
    terms = () if choice.static is None else choice.static.terms
    return max((term.n for term in terms if isinstance(term, Sinks)), default=0)


def heaviest_blocks(
    mass: Float[Tensor, "B H tiles blocks"], candidates: Bool[Tensor, "H tiles blocks"], coverage: float
) -> Bool[Tensor, "B H tiles blocks"]:
    """The fewest candidates that, with the mass of what is no candidate, hold a share `coverage` of each tile's mass.

    What is no candidate the pattern's static part names, or it lies in the tile itself. The heaviest come first, the lower
    number between equals; blocks without mass are left out, unless coverage is 1: then all candidates are taken. NaN
    weighs nothing.
    """
    if coverage == 1:
        return candidates.expand(mass.shape)
    mass = mass.nan_to_num(0.0)
    rest = mass.masked_fill(~candidates, 0.0)
    wanted = coverage * mass.sum(-1, keepdim=True) - mass.masked_fill(candidates, 0.0).sum(-1, keepdim=True)
    ordered = rest.sort(dim=-1, descending=True, stable=True)
    held = ordered.values.cumsum(-1) - ordered.values
    taken = (held < wanted) & (ordered.values > 0)
    return torch.zeros_like(taken).scatter(-1, ordered.indices, taken)


def _crossed(
    q: Tensor, k: Tensor, term: VerticalSlash, intervals: list[Interval | None], document: Document
) -> Bool[Tensor, "B Hq tiles blocks"]:
    n_sample = min(term.queries, document.n_queries)
    n_batch, n_keys, hkv, _ = k.shape
    i = torch.arange(n_keys - n_sample, n_keys, device=q.device)
    j = torch.arange(n_keys, device=q.device)
    base = document.first_position // term.rows
    tiles = torch.arange(term.tiles(document.n_queries, n_keys), device=q.device)
    sample = q[:, -n_sample:].unflatten(2, (hkv, -1))
    found = []
    for batch in range(n_batch):
        for head in range(hkv):  # one at a time: the sample's attention to all keys
            weights = sampled_attention(sample[batch, :, head], k[batch, :, head], n_keys - n_sample)
            interval = intervals[head % len(intervals)]
            covered = None
            if interval is not None:
                low, high = _bounds(interval, i, n_keys)
                covered = (j >= low[:, None]) & (j < high[:, None])
            lines = stripes_and_diagonals(weights, term.coverage, covered)
            found.append(crossed_blocks(*lines, (base + tiles) * term.rows, rows=term.rows, block=term.block))
    return torch.cat(found).unflatten(0, (n_batch, -1))


def _numbers(kept: Bool[Tensor, "B H tiles blocks"]) -> Int[Tensor, "B tiles H K"]:
    """The numbers of the kept blocks, ascending; -1 after the last."""
    width = int(kept.sum(-1).max())
    order = (~kept).to(torch.int8).sort(dim=-1, stable=True).indices[..., :width]
    return order.masked_fill(~kept.gather(-1, order), -1).int().transpose(1, 2)
