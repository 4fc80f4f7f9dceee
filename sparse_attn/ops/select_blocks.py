"""`select_blocks`: which key blocks each query (or tile of queries) is to attend to, from scores of whole blocks."""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..patterns import Pattern
from ..patterns.chosen import Choice, TopBlocks, split_choice
from ..patterns.covering import Covering
from ..patterns.documents import Document, split_documents
from ..patterns.layout import Groups
from ..patterns.parts import Interval
from .boundaries import Lengths
from .check_attention import check_call
from .check_selected import same_choice

SCORES = 1 << 22  # numbers in the scores that are held at once: 16 MiB in float32, and twice that to order them


def select_blocks(
    q: Float[Tensor, "*B T Hq D"],
    k: Float[Tensor, "*B S Hkv D"],
    pattern: Pattern | Sequence[Pattern],
    *,
    causal: bool = True,
    scale: float | None = None,
    cu_seqlens_q: Lengths | None = None,
    cu_seqlens_k: Lengths | None = None,
    score: str = "mean",
    compressed: Float[Tensor, "*B blocks Hkv D"] | None = None,
    per_query_head: bool = False,
) -> Int[Tensor, "*B N H K"]:
    """The blocks that score best for the pattern's `TopBlocks` term: what `attention` takes as `selected`.

    Of a `CoverBlocks` or `VerticalSlash` term: the blocks that cover its share of the mass, for each query head; `scale` is
    then the logits' own, and `score` and `compressed` say nothing.

    score[n,b,g] = sum over queries i of tile n, heads h of group g:  scale * q[i,h] @ c[b,g]          "mean"
                   sum over the same:  sum_d max(scale * q[i,h,d] * low[b,g,d], scale * q[i,h,d] * high[b,g,d])  "bounds"
    c[b] = the mean of block b's keys, or ``compressed[b]``;  low, high = their least and largest value in each dimension

    Candidates are the blocks wholly before the query's own, b < i // block (a tile: before that of its first position), or
    all blocks if not causal; less those wholly inside the pattern's interval (windows, chunks, full) for all queries
    of the tile, and those wholly outside a `within` of the term. The k best are chosen; fewer candidates than k: all of
    them. Between equal scores the lower block number wins. NaN scores as -inf does: chosen last; and no block is
    looked at by queries of another document.

    Args:
        q, k: As `attention` takes them, ``[B, T, Hq, D]`` and ``[B, S, Hkv, D]``, packed ``[T, H, D]``; any device.
        pattern: With one `TopBlocks` term; or one per KV head, all with the same one.
        causal, cu_seqlens_q, cu_seqlens_k: As for `attention`; those of a device are
            waited for once, and again when PyTorch has changed them.
        scale: Multiplies the queries, ``D ** -0.5`` if None; to `TopBlocks` only its sign matters.
        score: "mean", or "bounds": an upper bound of every logit in the block (Quest).
        compressed: One key for each block, those of a document after the document's before, in place of the mean.
        per_query_head: Each query head chooses for itself (H = Hq); else the heads of a group do together (H = Hkv).

    Returns:
        int32 ``[B, N, H, K]``, K = min(k, ceil(S / block)); best first, -1 where there is no further candidate.

    Raises:
        ValueError: as `attention`; no `TopBlocks` term, an unknown score, or compressed keys that do not fit.

    No gradient passes. With rows > 1 a tile's choice reads its later queries: not for training.
    Cost: 2 * H * D * (T / rows) * (S / block) multiply-adds (causal: half; "bounds": twice) in float32 products and a
    top-k over each row, by plain torch; on a GPU by a kernel, up to 4,096 blocks a document. Memory: 16 MiB of scores at a
    time (the kernel: 256 MiB), and S / block keys.
    Source: Lu et al. 2025, arXiv:2502.13189 (means); Tang et al. 2024, arXiv:2406.10774 (bounds).

    >>> pattern = Window(64) | TopBlocks(2, block=32)
    >>> select_blocks(q, k, pattern)[0, 299, 0].shape  # the last query's two blocks
    torch.Size([2])
    """
    call = check_call(q, k, k, _without_anchors(pattern), causal, scale, cu_seqlens_q, cu_seqlens_k, None, None)
    if call.choice is None:
        raise ValueError(f"pattern has no TopBlocks term to select blocks for, got {pattern!r}")
    if isinstance(call.choice.term, Covering) and (score != "mean" or compressed is not None):
        raise ValueError(f"score and compressed are for TopBlocks: leave them out for {call.choice.term!r}")
    if score not in ("mean", "bounds"):
        raise ValueError(f"score must be 'mean' or 'bounds', got {score!r}")
    bounds = call.bounds
    if compressed is not None:
        compressed = _check_compressed(compressed, k, call.choice, call.k.shape[1], bounds[1], score)
    plain = isinstance(call.choice.term, TopBlocks) and call.scale > 0  # the size of the scale bears on no order
    selected = choose_blocks(
        call.q if plain else call.q * call.scale,
        call.k,
        call.patterns,
        causal=causal,
        bounds=bounds,
        score=score,
        compressed=compressed,
        per_query_head=per_query_head,
        ordered=True,
    )
    return selected[0] if call.packed else selected


@torch.no_grad()
def choose_blocks(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    patterns: Sequence[Pattern],
    *,
    causal: bool,
    bounds: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
    score: str = "mean",
    compressed: Float[Tensor, "B blocks Hkv D"] | None = None,
    per_query_head: bool = False,
    ordered: bool = False,
) -> Int[Tensor, "B N H K"]:
    """`select_blocks` for arguments that have been checked, with the queries already scaled.

    Attention asks for no order, and the GPU's kernel finds none: `ordered` puts the best block first there, too.
    """
    with torch.autocast(q.device.type, enabled=False):  # scores are float32 inside autocast too
        return _choose_blocks(
            q,
            k,
            patterns,
            causal=causal,
            bounds=bounds,
            score=score,
            compressed=compressed,
            per_query_head=per_query_head,
            ordered=ordered,
        )


def _choose_blocks(
    q: Tensor,
    k: Tensor,
    patterns: Sequence[Pattern],
    *,
    causal: bool,
    bounds: tuple[Sequence[int] | None, Sequence[int] | None],
    score: str,
    compressed: Tensor | None,
    per_query_head: bool,
    ordered: bool,
) -> Tensor:
    choice = same_choice(patterns)
    if isinstance(choice.term, Covering):
        from .cover_blocks import covering_blocks  # which needs `candidate_blocks`

        return covering_blocks(q, k, patterns, causal=causal, bounds=bounds)
    documents = split_documents(q.shape[1], k.shape[1], *bounds)
    heads = q.shape[2] if per_query_head else k.shape[2]
    intervals = [static_interval(pattern, causal) for pattern in patterns]
    assert isinstance(choice.term, TopBlocks)
    width = min(choice.term.k, -(-k.shape[1] // choice.term.block))
    n_tiles = sum(choice.term.tiles(document.n_queries, document.n_keys) for document in documents)
    selected = torch.full((q.shape[0], n_tiles, heads, width), -1, dtype=torch.int32, device=q.device)
    first_tile, first_block = 0, 0
    for document in documents:
        n_blocks = -(-document.n_keys // choice.term.block)
        tiles = choice.term.tiles(document.n_queries, document.n_keys)
        if tiles:
            if compressed is None:
                keys = _block_features(k[:, document.k_start : document.k_stop], choice.term.block, score)
            else:
                keys = wide(compressed[:, first_block : first_block + n_blocks])
            queries = _tile_features(q, document, choice.term.rows, heads, score)
            keys = keys.repeat_interleave(heads // k.shape[2], 2)
            own = selected[:, first_tile : first_tile + tiles]
            if _fused(queries, n_blocks):
                own.copy_(_select_fused(queries, keys, choice, intervals, document, width, causal, ordered))
                first_tile, first_block = first_tile + tiles, first_block + n_blocks
                continue
            for part, scores in _scores(queries, keys):
                candidates = [
                    candidate_blocks(choice, interval, document, part, causal=causal, device=q.device)
                    for interval in intervals
                ]
                allowed = torch.stack(candidates).repeat_interleave(heads // len(candidates), 0)
                own[:, part] = best_blocks(scores, allowed, width).transpose(1, 2)
        first_tile, first_block = first_tile + tiles, first_block + n_blocks
    return selected


def candidate_blocks(
    choice: Choice,
    interval: Interval | None,
    document: Document,
    part: slice | Int[Tensor, " tiles"],
    *,
    causal: bool,
    device: torch.device,
) -> Bool[Tensor, "tiles blocks"]:
    """Which blocks of a document each of its tiles may choose, of a run of tiles or of any; see `select_blocks`."""
    block, rows, n_keys = choice.term.block, choice.term.rows, document.n_keys
    tiles = torch.arange(part.start, part.stop, device=device) if isinstance(part, slice) else part
    first = (document.first_position // rows + tiles) * rows
    last = (first + rows - 1).clamp(max=n_keys - 1)
    key_first = torch.arange(-(-n_keys // block), device=device) * block
    key_stop = (key_first + block).clamp(max=n_keys)
    allowed = (
        (key_first < (first // block * block)[:, None]) if causal else (key_first >= 0)[None].expand(len(first), -1)
    )
    if interval is not None:
        low, high = _interval_of(interval, first, last, n_keys)
        allowed = allowed & ~((key_first >= low[:, None]) & (key_stop <= high[:, None]))
    if choice.limit is not None:
        near = key_stop > (first - choice.limit.left + 1)[:, None]
        allowed = allowed & near & (key_first <= (last + choice.limit.ahead)[:, None])
    return allowed


def candidate_ranges(
    choice: Choice, interval: Interval | None, document: Document, tiles: int, *, causal: bool, device: torch.device
) -> Int[Tensor, "tiles 4"]:
    """`candidate_blocks` in four numbers a tile: first and end of what may be chosen, first and end of what is left out."""
    block, rows, n_keys = choice.term.block, choice.term.rows, document.n_keys
    n_blocks = -(-n_keys // block)
    first = (document.first_position // rows + torch.arange(tiles, device=device)) * rows
    last = (first + rows - 1).clamp(max=n_keys - 1)
    begin, stop = torch.zeros_like(first), first // block if causal else torch.full_like(first, n_blocks)
    if choice.limit is not None:
        begin = (first - choice.limit.left + 1).clamp(min=0) // block
        stop = torch.minimum(stop, (last + choice.limit.ahead) // block + 1)
    out_begin = out_stop = begin
    if interval is not None:
        low, high = _interval_of(interval, first, last, n_keys)
        out_begin = (low + block - 1) // block
        out_stop = torch.where(high >= n_keys, n_blocks, high // block)
    return torch.stack([begin, stop, out_begin, out_stop], -1).int()


def _fused(queries: Tensor, n_blocks: int) -> bool:
    """Whether the GPU's kernel finds the best blocks."""
    if (
        not queries.is_cuda
        or queries.dtype != torch.float32
        or torch.cuda.get_device_capability(queries.device) < (8, 0)
    ):
        return False
    try:
        from ..kernels.selected import MOST_BLOCKS
    except ModuleNotFoundError:  # Triton is not installed
        return False
    return n_blocks <= MOST_BLOCKS


def _select_fused(
    queries: Float[Tensor, "B tiles H F"], keys: Float[Tensor, "B blocks H F"], choice: Choice,
    intervals: Sequence[Interval | None], document: Document, width: int, causal: bool, ordered: bool,
) -> Int[Tensor, "B tiles H width"]:  # fmt: skip
    from ..kernels.selected import select_tiles

    term, heads, n_blocks = choice.term, queries.shape[2], keys.shape[1]
    tiles = term.tiles(document.n_queries, document.n_keys)
    ranges = torch.stack(
        [
            candidate_ranges(choice, interval, document, tiles, causal=causal, device=queries.device)
            for interval in intervals
        ]
    )
    if len(ranges) > 1:
        ranges = ranges.repeat_interleave(heads // len(ranges), 0)
    first = document.first_position // term.rows

    def reach(tile: int) -> int:
        return min((first + tile - 1) * term.rows // term.block, n_blocks) if causal else n_blocks

    return select_tiles(queries, keys, ranges, width, reach, ordered=ordered)


def best_blocks(
    scores: Float[Tensor, "B H tiles blocks"], allowed: Bool[Tensor, "H tiles blocks"], width: int
) -> Int[Tensor, "B H tiles width"]:
    """The `width` allowed blocks with the highest scores, best first, the lower number between equals; -1: no more.

    A score and its block become one integer, whose order is that of scores and then of blocks: no two are equal, so
    that the order is the same on every device.
    """
    n_blocks = scores.shape[-1]
    narrow = torch.where(torch.isnan(scores), float("-inf"), scores.float())
    bits = narrow.view(torch.int32).long()
    order = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # floats in order; -0 and 0 are equal
    rank = (order << 31) + torch.arange(n_blocks - 1, -1, -1, device=scores.device)
    rank = rank.masked_fill(~allowed, torch.iinfo(torch.int64).min)
    best = rank.topk(min(width, n_blocks), dim=-1)
    chosen = torch.where(best.values == torch.iinfo(torch.int64).min, -1, best.indices).int()
    return torch.nn.functional.pad(chosen, (0, width - chosen.shape[-1]), value=-1)


def _without_anchors(pattern: Pattern | Sequence[Pattern]) -> Any:
    """The pattern without terms of extra keys, which bear on no choice: `check_call` would ask for these keys."""
    if isinstance(pattern, Sequence) and not isinstance(pattern, str):
        return [_without_anchors(own) for own in pattern]
    if not isinstance(pattern, Pattern) or not pattern.extra_keys:
        return pattern
    kept = [term for term in pattern.terms if not term.extra_keys]
    return reduce(or_, kept) if kept else pattern


def _check_compressed(
    compressed: Tensor, k: Tensor, choice: Choice, n_keys: int, bounds: Sequence[int] | None, score: str
) -> Tensor:
    if score != "mean":
        raise ValueError(f"compressed keys are scored by products: score must be 'mean', got {score!r}")
    lengths = [n_keys] if bounds is None else [stop - start for start, stop in pairwise(bounds)]
    shape = (*k.shape[:-3], sum(-(-length // choice.term.block) for length in lengths), *k.shape[-2:])
    if not isinstance(compressed, Tensor) or tuple(compressed.shape) != shape or compressed.device != k.device:
        got = f"{tuple(compressed.shape)} on {compressed.device}" if isinstance(compressed, Tensor) else compressed
        raise ValueError(
            f"compressed must have shape {shape} ([B,] blocks, Hkv, D) on k's device {k.device}, got {got}"
        )
    return compressed if bounds is None else compressed[None]


def static_interval(pattern: Pattern, causal: bool) -> Interval | None:
    """The run of keys around each query that the static part of a pattern keeps."""
    choice = split_choice(pattern)
    return None if choice is None or choice.static is None else Groups(choice.static, causal).interval


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _block_features(k: Float[Tensor, "B S Hkv D"], block: int, score: str) -> Float[Tensor, "B blocks Hkv F"]:
    """What a block's score multiplies a query's features with; the last block may be short."""
    parts = [k[:, : k.shape[1] // block * block].unflatten(1, (-1, block)), k[:, k.shape[1] // block * block :, None]]
    parts[1] = parts[1].transpose(1, 2)  # one block of what is left
    found = []
    for part in parts:
        if part.shape[1] and part.shape[2]:
            wide = torch.promote_types(part.dtype, torch.float32)
            bounds = () if score == "mean" else (part.amax(2).to(wide), part.amin(2).to(wide))
            found.append(torch.cat(bounds, -1) if bounds else part.mean(2, dtype=wide))
    return torch.cat(found, 1)


def _tile_features(
    q: Float[Tensor, "B T Hq D"], document: Document, rows: int, heads: int, score: str
) -> Float[Tensor, "B tiles H F"]:
    """Sums over the queries of each tile and the heads that choose together: both scores are linear in these."""
    own = q[:, document.q_start : document.q_stop]
    if score == "bounds":
        own = torch.cat([own.clamp(min=0), own.clamp(max=0)], -1)
    own = own.unflatten(2, (heads, -1)).sum(3, dtype=torch.promote_types(q.dtype, torch.float32))
    if rows == 1:
        return own
    before = document.first_position % rows
    after = -(before + own.shape[1]) % rows
    return torch.nn.functional.pad(own, (0, 0, 0, 0, before, after)).unflatten(1, (-1, rows)).sum(2)


def _scores(
    queries: Float[Tensor, "B tiles H F"], keys: Float[Tensor, "B blocks H F"]
) -> Iterator[tuple[slice, Float[Tensor, "B H some blocks"]]]:
    n_batch, n_tiles, heads, _ = queries.shape
    step = max(1, SCORES // (n_batch * heads * keys.shape[1]))
    by_block = keys.permute(0, 2, 3, 1)
    for start in range(0, n_tiles, step):
        part = slice(start, min(start + step, n_tiles))
        yield part, queries[:, part].transpose(1, 2) @ by_block


def _interval_of(interval: Interval, first: Tensor, last: Tensor, n_keys: int) -> tuple[Tensor, Tensor]:
    """Keys inside the interval of every query from first to last: from the last one's low to the first one's high."""
    _, high = _bounds(interval, first, n_keys)
    low, _ = _bounds(interval, last, n_keys)
    return low, high


def _bounds(interval: Interval, i: Tensor, n_keys: int) -> tuple[Tensor, Tensor]:
    """`Interval.bounds` on the device of `i`."""

    def span(left: int | None, right: int | None) -> tuple[Tensor, Tensor]:
        low = torch.zeros_like(i) if left is None else (i - left + 1).clamp(min=0)
        high = torch.full_like(i, n_keys) if right is None else (i + right + 1).clamp(max=n_keys)
        return low, high

    low, high = span(interval.left, interval.right)
    for chunk in interval.chunks:
        near_low, near_high = span(chunk.left, chunk.right)
        start = i // chunk.size * chunk.size
        low = torch.minimum(low, torch.maximum(start, near_low))
        high = torch.maximum(high, torch.minimum(start + chunk.size, near_high))
    return low, high
