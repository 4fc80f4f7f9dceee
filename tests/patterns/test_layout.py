"""The layout against the mask: what its parts tell a kernel to read is what the mask keeps, each key once."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparse_attn.patterns import Dilated, Full, Global, Layout, Pattern, Random, Sinks, Strided, Window, parse
from tests.patterns.strategies import lengths, packed, patterns


def mask_of_layout(layout: Layout) -> NDArray[np.bool_]:
    """The pairs that a kernel reads which follows the parts' descriptions block by block."""
    mask = np.zeros((layout.n_queries, layout.n_keys), dtype=bool)
    for number, (d, q_start, q_stop) in enumerate(layout.blocks.tolist()):
        document = layout.documents[d]
        for t in range(q_start, q_stop):
            i = document.first_position + t - document.q_start
            for j in _keys_of_query(layout, number, d, i, document.n_keys):
                mask[t, document.k_start + j] = True
    return mask


def _keys_of_query(layout: Layout, number: int, d: int, i: int, n_keys: int) -> set[int]:
    def near(left: int | None, right: int | None) -> set[int]:
        first = 0 if left is None else max(0, i - left + 1)
        return set(range(first, n_keys if right is None else min(n_keys, i + right + 1)))

    keys: set[int] = set()
    if layout.interval is not None:
        low, high = (int(bound[0]) for bound in layout.interval.bounds(np.array([i]), n_keys))
        keys |= set(range(low, high))
    for rows in layout.full_rows:
        if i in rows.positions[rows.offsets[d] : rows.offsets[d + 1]]:
            keys |= near(rows.left, rows.right)
    for columns in layout.columns:
        for first, stop in (columns.before[number], columns.after[number]):
            keys |= set(columns.positions[first:stop].tolist()) & near(columns.left, columns.right)
    for blocks in layout.lists:
        row = int(blocks.row_offsets[d]) + i // blocks.block - int(blocks.first_block[d])
        for c in blocks.indices[blocks.indptr[row] : blocks.indptr[row + 1]].tolist():
            keys |= set(range(c * blocks.block, (c + 1) * blocks.block)) & near(blocks.left, blocks.right)
    for step in layout.dilated:
        for j in range(i % step.dilation, n_keys, step.dilation):
            hops = (i - j) // step.dilation
            left, right = step.left, step.right
            is_near = (left is None or hops < left) and (right is None or hops >= -right)
            if is_near and step.residue in (None, j % step.dilation):
                keys.add(j)
    return keys


@settings(max_examples=150)
@given(patterns(), lengths(), st.sampled_from([1, 8, 16]), st.sampled_from([1, 8, 16]), st.booleans())
def test_layout_reads_what_the_mask_keeps(
    pattern: Pattern, shape: tuple[int, int], block_q: int, block_k: int, causal: bool
) -> None:
    layout = pattern.layout(*shape, block_q, block_k, causal=causal)
    assert np.array_equal(mask_of_layout(layout), pattern.mask(*shape, causal=causal))


@given(patterns(), packed(), st.booleans())
def test_layout_of_packed_documents(pattern: Pattern, bounds: tuple[list[int], list[int]], causal: bool) -> None:
    q_bounds, k_bounds = bounds
    layout = pattern.layout(None, None, 8, 8, causal=causal, cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds)
    mask = pattern.mask(causal=causal, cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds)
    assert np.array_equal(mask_of_layout(layout), mask)


@given(patterns(), lengths(), st.booleans())
def test_the_transpose_lists_the_same_pairs_of_blocks(pattern: Pattern, shape: tuple[int, int], causal: bool) -> None:
    for blocks in pattern.layout(*shape, 16, 16, causal=causal).lists:
        rows = np.repeat(np.arange(len(blocks.indptr) - 1), np.diff(blocks.indptr))
        columns = np.repeat(np.arange(len(blocks.transpose_indptr) - 1), np.diff(blocks.transpose_indptr))
        pairs = set(zip(rows.tolist(), blocks.indices.tolist(), strict=True))
        transposed = set(zip(blocks.transpose_indices.tolist(), columns.tolist(), strict=True))
        assert len(pairs) == len(rows)
        assert pairs == transposed


@given(patterns(), lengths(), st.sampled_from([4, 16]), st.sampled_from([4, 16]), st.booleans())
def test_interval_tiles_hold_the_interval_and_inner_tiles_need_no_mask(
    pattern: Pattern, shape: tuple[int, int], block_q: int, block_k: int, causal: bool
) -> None:
    layout = pattern.layout(*shape, block_q, block_k, causal=causal)
    if layout.interval is None:
        return
    document = layout.documents[0]
    for (_, start, stop), (first, inner_first, inner_last, last) in zip(
        layout.blocks.tolist(), layout.interval_tiles().tolist(), strict=True
    ):
        low, high = layout.interval.bounds(np.arange(start, stop) + document.first_position, document.n_keys)
        assert first * block_k <= low.min()
        assert high.max() <= last * block_k
        assert first <= inner_first <= inner_last <= last
        if inner_first < inner_last:
            assert low.max() <= inner_first * block_k
            assert inner_last * block_k <= high.min()


def test_terms_fall_into_the_parts_that_serve_them() -> None:
    layout = parse("window(64) | sinks(4) | strided(32) | random(2) | dilated(4, 8) | global((0, 500))").layout(1000)
    assert layout.interval is not None
    assert (layout.interval.left, layout.interval.right) == (64, 0)
    assert [len(c.positions) for c in layout.columns] == [36]  # 32 stripes, sinks 1 to 3 and 500; 0 stands in all
    assert len(layout.lists) == len(layout.dilated) == len(layout.full_rows) == 1
    assert (Dilated(8, 1) | Strided(1).within(Window(5))).layout(10).interval == Window(8).layout(10).interval
    assert Full().layout(10).interval == (Full() | Window(3) | Sinks(2)).layout(10).interval


def test_a_million_tokens_in_little_time_and_memory() -> None:
    pattern = Window(4096) | Sinks(4) | Strided(1024) | Random(3, seed=0)
    pattern.layout(1 << 16)
    tracemalloc.start()
    layout = pattern.layout(1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
    assert layout.nbytes < 2 << 20
    sizes = [pattern.layout(n).nbytes for n in (1 << 18, 1 << 19, 1 << 20)]
    assert sizes[2] / sizes[1] == pytest.approx(2, rel=0.05)
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.05)


def test_global_positions_beyond_the_end_are_ignored() -> None:
    layout = Global([5, 5000]).layout(3, 10)
    assert layout.columns[0].positions.tolist() == [5]
    assert layout.full_rows == ()  # position 5 has no query among the last three
