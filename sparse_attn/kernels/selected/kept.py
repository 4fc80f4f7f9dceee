"""Helpers in Triton: which keys of a chosen block a query sees.

Those at or before it (causal) in its document and inside the choice's own limit, that no static part of the pattern names.
A block far from all queries of a tile needs no mask: `seen_whole` tells, from positions alone.
"""

import triton
import triton.language as tl

from ..attention.interval import interval_bounds
from ..attention.named import named_before_pass


@triton.jit
def head_rows(source, head, stride_h, USE_TMA: tl.constexpr):
    """A head's row 0; a descriptor stays as it is."""
    if USE_TMA:
        return source
    else:
        return source + head.to(tl.int64) * stride_h


@triton.jit
def document_of(documents, document, offset, n_keys, PACKED: tl.constexpr):
    """Of a document: its first key, its number of keys, the position of its first query, and the query row of position 0."""
    if PACKED:
        q_start, q_stop = tl.load(documents + 7 * document), tl.load(documents + 7 * document + 1)
        k_start, k_stop = tl.load(documents + 7 * document + 2), tl.load(documents + 7 * document + 3)
        first_query = k_stop - k_start - (q_stop - q_start)
        return k_start, k_stop - k_start, first_query, q_start - first_query
    else:
        return 0, n_keys, offset, -offset


@triton.jit
def seen_whole(
    start, first, last, own_keys, flags, block, left, right, parameters,
    SIZE: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, HAS_INTERVAL: tl.constexpr, CHUNKS: tl.constexpr,
    COLUMNS: tl.constexpr, ALWAYS: tl.constexpr,
):  # fmt: skip
    """Whether all queries at positions first .. last see all keys of the block at `start`; false where that is hard to tell.

    `block` is its number among all documents' blocks, by which `flags` tells whether it holds a column.
    """
    stop = start + SIZE
    seen = stop <= own_keys
    if CAUSAL:
        seen = seen & (stop <= first + 1)
    if HAS_INTERVAL:
        low, _ = interval_bounds(first, own_keys, left, right, parameters, CHUNKS)
        _, high = interval_bounds(last, own_keys, left, right, parameters, CHUNKS)
        seen = seen & ((stop <= low) | (start >= high))
    if COLUMNS > 0:
        seen = seen & (tl.load(flags + block) == 0)
    if ALWAYS or SIZE != BLOCK_N:
        seen = seen & (start < 0)
    return seen


@triton.jit
def kept_keys(
    i, low, high, inside, j, key_inside, key_at, document, limit_left, limit_right,
    key_bits, n_documents, list_rows, list_begins, list_entries, behind_rows,
    CAUSAL: tl.constexpr, LIMITED: tl.constexpr, COLUMNS: tl.constexpr, LISTS: tl.constexpr, PASSES: tl.constexpr,
    UNCUT: tl.constexpr,
):  # fmt: skip
    """Which keys j the queries i see, whose intervals are low .. high; all broadcast against each other."""
    keep = inside & key_inside
    if CAUSAL:
        keep = keep & (j <= i)
    if LIMITED:
        keep = keep & (j > i - limit_left) & (j <= i + limit_right)
    named = named_before_pass(
        i, j, low, high, inside, key_bits, key_at, key_inside, document, n_documents,
        list_rows, list_begins, list_entries, behind_rows, PASSES, COLUMNS, LISTS, UNCUT,
    )  # fmt: skip
    return keep & (named == 0)
