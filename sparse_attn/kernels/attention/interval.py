"""Helpers in Triton: where a query's interval of keys begins and ends, the same from a key's side, and tiles of rows.

An interval is a window of `left` keys up to the query's own and `right` after it, in a sequence of n_keys; its hull with
the query's chunk (cut to chunk_left and chunk_right), where the pattern has one. Low and high never decrease from one
query to the next, which is what lets a tile's first and last row bound the others. All positions are 32-bit.
"""

import triton
import triton.language as tl


@triton.jit
def interval_bounds(i, n_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK: tl.constexpr):
    """First key and end of the interval of a query position (or of a tensor of them)."""
    low = tl.maximum(i - left + 1, 0)
    high = tl.minimum(i + right + 1, n_keys)
    if HAS_CHUNK:
        start = i // chunk * chunk
        low = tl.minimum(low, tl.maximum(start, i - chunk_left + 1))
        high = tl.maximum(high, tl.minimum(tl.minimum(start + chunk, i + chunk_right + 1), n_keys))
    return low, high


@triton.jit
def query_bounds(j, first, n_keys, left, right, chunk, chunk_left, chunk_right, HAS_CHUNK: tl.constexpr):
    """First query position and end of those that see a key position; queries stand at first .. n_keys - 1."""
    low = tl.maximum(j - right, first)
    high = tl.minimum(j + left, n_keys)
    if HAS_CHUNK:
        start = j // chunk * chunk
        low = tl.minimum(low, tl.maximum(tl.maximum(start, j - chunk_right), first))
        high = tl.maximum(high, tl.minimum(tl.minimum(start + chunk, j + chunk_left), n_keys))
    return low, high


@triton.jit
def load_tile(
    source, batch, head, row, first, stop, stride, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    USE_TMA: tl.constexpr, CLEAN: tl.constexpr,
):  # fmt: skip
    """Rows row .. row + ROWS of one head as a tile `[ROWS, BLOCK_D]`; zeros outside first .. stop.

    `source` is a tensor descriptor over `[B, N, H, D]`, or a pointer to the head's row 0. A descriptor fills in zeros
    outside the whole tensor only; CLEAN clears rows of neighbouring documents too, whose NaNs must not meet ours.
    """
    rows = row + tl.arange(0, ROWS)
    inside = (rows >= first) & (rows < stop)
    if USE_TMA:
        tile = source.load([batch, row, head, 0]).reshape(ROWS, BLOCK_D)
        if CLEAN:
            tile = tl.where(inside[:, None], tile, 0.0)
    else:
        d = tl.arange(0, BLOCK_D)
        at = source + (rows.to(tl.int64) * stride)[:, None] + d[None, :]
        tile = tl.load(at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    return tile


@triton.jit
def head_pointer(source, batch, head, stride_b, stride_h, USE_TMA: tl.constexpr):
    """A head's row 0; a descriptor stays as it is."""
    if USE_TMA:
        return source
    else:
        return source + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h


@triton.jit
def block_geometry(block, blocks, documents, n_rows, n_queries, n_keys, ROWS: tl.constexpr, PACKED: tl.constexpr):
    """Where a block's rows and its document's queries and keys begin and end: row, stop, q_start, q_stop, k_start, k_stop.

    Without packing the sequence is one document and its blocks are cut at multiples of ROWS. With packing, `blocks`
    holds document, first row and end of each block, and `documents` the four boundaries of each document.
    """
    if PACKED:
        document = tl.load(blocks + 3 * block)
        row, stop = tl.load(blocks + 3 * block + 1), tl.load(blocks + 3 * block + 2)
        q_start, q_stop = tl.load(documents + 4 * document), tl.load(documents + 4 * document + 1)
        k_start, k_stop = tl.load(documents + 4 * document + 2), tl.load(documents + 4 * document + 3)
    else:
        row = block * ROWS
        stop = tl.minimum(row + ROWS, n_rows)
        q_start, q_stop, k_start, k_stop = 0, n_queries, 0, n_keys
    return row, stop, q_start, q_stop, k_start, k_stop
