"""Helpers in Triton: which queries and keys a program works on, and tiles of their rows.

A pass walks x = 0, 1, ... on the grid position = residue + x * step. A token of the document stands at base + x * step.
"""

import triton
import triton.language as tl


@triton.jit
def locate_block(block, blocks, documents, first, offset, n_queries, n_keys, ROWS: tl.constexpr, TABLE: tl.constexpr,
                 PACKED: tl.constexpr):  # fmt: skip
    """Where a block of queries or keys stands: document, residue, x, stop, q_start, k_start, the document's number of
    keys, and the position of its first query (`offset` without packing).

    Without a table, blocks of a main pass are cut from x = first on. With one, `blocks` holds document, residue, first x
    and end of each block; `documents` holds seven numbers a document, of which the first four are its boundaries.
    """
    document, residue = 0, 0
    q_start, k_start, own_keys, first_query = 0, 0, n_keys, offset
    if TABLE:
        document, residue = tl.load(blocks + 4 * block), tl.load(blocks + 4 * block + 1)
        x, stop = tl.load(blocks + 4 * block + 2), tl.load(blocks + 4 * block + 3)
    else:
        x = first + block * ROWS
        stop = tl.minimum(x + ROWS, n_keys)
    if PACKED:
        q_start, k_start, own_keys, first_query = document_bounds(documents, document)
    return document, residue, x, stop, q_start, k_start, own_keys, first_query


@triton.jit
def document_bounds(documents, document):
    """First query and first key of a packed document, its number of keys, and the position of its first query."""
    q_start, q_stop = tl.load(documents + 7 * document), tl.load(documents + 7 * document + 1)
    k_start, k_stop = tl.load(documents + 7 * document + 2), tl.load(documents + 7 * document + 3)
    return q_start, k_start, k_stop - k_start, k_stop - k_start - (q_stop - q_start)


@triton.jit
def readable_rows(first_query, n_keys, PACKED: tl.constexpr):
    """Up to which position `backward_rows` may be read: without packing, rows of weight 0 follow up to a multiple of 16."""
    if PACKED:
        return n_keys
    else:
        return first_query + (n_keys - first_query + 15) // 16 * 16


@triton.jit
def head_pointer(source, batch, head, stride_b, stride_h, USE_TMA: tl.constexpr):
    """A head's row 0; a descriptor stays as it is."""
    if USE_TMA:
        return source
    else:
        return source + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h


@triton.jit
def load_rows(source, at, inside, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows `at` of the head that a pointer names, as a tile `[ROWS, BLOCK_D]`; zeros where not inside."""
    d = tl.arange(0, BLOCK_D)
    tile_at = source + (at.to(tl.int64) * stride)[:, None] + d[None, :]
    if D == BLOCK_D:
        return tl.load(tile_at, mask=inside[:, None], other=0.0)
    else:
        return tl.load(tile_at, mask=inside[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def load_tile(
    source, batch, head, residue, x, first, stop, base, step, stride, D: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr, USE_TMA: tl.constexpr, CLEAN: tl.constexpr, DILATED: tl.constexpr,
):  # fmt: skip
    """Rows of one head at x .. x + ROWS as a tile `[ROWS, BLOCK_D]`; zeros outside first .. stop.

    `source` is a pointer to the head's row 0, or a tensor descriptor over `[B, N, H, D]` (dilated: over
    `[B, N / step, step, H, D]`). A descriptor fills in zeros outside the whole tensor only; CLEAN clears rows of
    neighbouring documents too, whose NaNs must not meet ours.
    """
    xs = x + tl.arange(0, ROWS)
    inside = (xs >= first) & (xs < stop)
    if USE_TMA:
        if DILATED:
            tile = source.load([batch, x, residue, head, 0]).reshape(ROWS, BLOCK_D)
        else:
            tile = source.load([batch, base + x, head, 0]).reshape(ROWS, BLOCK_D)
        if CLEAN:
            tile = tl.where(inside[:, None], tile, 0.0)
    else:
        tile = load_rows(source, base + xs * step, inside, stride, D, BLOCK_D)
    return tile
