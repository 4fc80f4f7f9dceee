"""Helpers in Triton: keys that an earlier part of the pattern names, element by element.

A key counts once. In the order interval, columns, lists, dilated passes, each part leaves out what an earlier one names.
Positions i (queries) and j (keys), bounds and bits come as tensors that broadcast against each other, queries down or
queries across. Limits stand in `parameters` behind those of chunks and full rows.
"""

import triton
import triton.language as tl


@triton.jit
def near(i, j, limits):
    """Keys within a part's cut around each query."""
    return (j > i - tl.load(limits)) & (j <= i + tl.load(limits + 1))


@triton.jit
def in_columns(i, j, bits, limits, GROUPS: tl.constexpr, UNCUT: tl.constexpr):
    """Keys that stand in one of the first groups of columns, by their bits.

    UNCUT: columns have no limits but causality, under which nobody asks for later keys.
    """
    if UNCUT:
        named = (bits & ((1 << GROUPS) - 1)) != 0
    else:
        named = (i < 0) & (j < 0)
        for g in tl.static_range(GROUPS):
            named = named | ((((bits >> g) & 1) == 1) & near(i, j, limits + 2 * g))
    return named


@triton.jit
def in_lists(i, j, inside, document, n_documents, first_rows, begins, entries, limits, LISTS: tl.constexpr):
    """Keys in blocks that one of the first lists names for the query's block. `inside`: queries that exist."""
    named = (i < 0) & (j < 0)
    for number in tl.static_range(LISTS):
        block = tl.load(limits + 3 * number)
        row = tl.load(first_rows + number * n_documents + document) + i // block
        begin = tl.load(begins + row, mask=inside, other=0)
        count = tl.load(begins + row + 1, mask=inside, other=0) - begin
        for nth in range(tl.max(count)):
            listed = tl.load(entries + 2 * (begin + nth) + 1, mask=nth < count, other=-1)
            named = named | ((listed == j // block) & near(i, j, limits + 3 * number + 1))
    return named


@triton.jit
def in_passes(i, j, passes, COUNT: tl.constexpr):
    """Keys that one of the first dilated passes reads."""
    named = (i < 0) & (j < 0)
    for number in tl.static_range(COUNT):
        step, left = tl.load(passes + 4 * number), tl.load(passes + 4 * number + 1)
        right, residue = tl.load(passes + 4 * number + 2), tl.load(passes + 4 * number + 3)
        # Shifted by a multiple of the step to stay positive: Triton's division rounds towards zero.
        behind = i - j + (j // step + 1) * step
        hops = behind // step - (j // step + 1)
        own = (behind % step == 0) & (hops < left) & (hops >= -right)
        named = named | (own & ((residue < 0) | (i % step == residue)))
    return named


@triton.jit
def named_before_pass(
    i, j, low, high, inside, key_bits, key_at, key_inside, document, n_documents, first_rows, begins, entries,
    parameters, EARLIER: tl.constexpr, COLUMNS: tl.constexpr, LISTS: tl.constexpr, UNCUT: tl.constexpr,
):  # fmt: skip
    """Keys that interval, columns, lists and the first EARLIER dilated passes name; low .. high are the rows' runs.

    `parameters` points behind the limits of full rows.
    """
    named = (low <= j) & (j < high)
    if COLUMNS > 0:
        bits = tl.load(key_bits + key_at, mask=key_inside, other=0)
        named = named | in_columns(i, j, bits, parameters, COLUMNS, UNCUT)
    if LISTS > 0:
        named = named | in_lists(
            i, j, inside, document, n_documents, first_rows, begins, entries, parameters + 2 * COLUMNS, LISTS
        )
    if EARLIER > 0:
        named = named | in_passes(i, j, parameters + 2 * COLUMNS + 3 * LISTS, EARLIER)
    return named


@triton.jit
def column_keep(
    i, low, high, columns, stop, positions, tokens, key_bits, limits, NUMBER: tl.constexpr, UNCUT: tl.constexpr
):  # fmt: skip
    """Which gathered columns, of those before `stop`, the queries see as keys of group NUMBER: ``[queries, columns]``."""
    j = tl.load(positions + columns, mask=columns < stop, other=2147483647)[None, :]
    keep = near(i[:, None], j, limits + 2 * NUMBER) & ((j < low[:, None]) | (j >= high[:, None]))
    keep = keep & (columns < stop)[None, :]
    if NUMBER > 0:
        token = tl.load(tokens + columns, mask=columns < stop, other=0)
        bits = tl.load(key_bits + token, mask=columns < stop, other=0)[None, :]
        keep = keep & (in_columns(i[:, None], j, bits, limits, NUMBER, UNCUT) == 0)
    return keep


@triton.jit
def list_keep(
    i, low, high, inside, query_block, size, keys, key_stop, k_start, key_bits, document, n_documents,
    list_rows, list_begins, list_entries, limits,
    NUMBER: tl.constexpr, COLUMNS: tl.constexpr, UNCUT: tl.constexpr,
):  # fmt: skip
    """Which keys before `key_stop` the queries of a block see through an entry of list NUMBER: ``[queries, keys]``.

    `limits` are those of the columns; those of the lists follow.
    """
    j = keys[None, :]
    keep = (i // size == query_block)[:, None] & (j < key_stop) & ((j < low[:, None]) | (j >= high[:, None]))
    keep = keep & near(i[:, None], j, limits + 2 * COLUMNS + 3 * NUMBER + 1)
    if COLUMNS > 0:
        bits = tl.load(key_bits + k_start + j, mask=j < key_stop, other=0)
        keep = keep & (in_columns(i[:, None], j, bits, limits, COLUMNS, UNCUT) == 0)
    if NUMBER > 0:
        named = in_lists(
            i[:, None], j, inside[:, None], document, n_documents, list_rows, list_begins, list_entries,
            limits + 2 * COLUMNS, NUMBER,
        )  # fmt: skip
        keep = keep & (named == 0)
    return keep
