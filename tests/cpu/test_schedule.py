"""The schedule against the mask: every kept pair is read exactly once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparse_attn.cpu import schedule as schedule_module
from sparse_attn.cpu.schedule import PatternSchedule
from sparse_attn.cpu.tiles import EXTRA, SEQUENCE
from sparse_attn.patterns import Anchors, Full, Global, Pattern, Random, Sinks, Strided, Window
from tests.patterns.strategies import lengths, packed, patterns


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "ROWS", 16)
    monkeypatch.setattr(schedule_module, "KEYS", 16)


def times_read(schedule: PatternSchedule, source: int, n_sources: int) -> NDArray[np.int64]:
    """How often each (query, key) pair is read."""
    times = np.zeros((schedule.layout.n_queries, n_sources), dtype=np.int64)
    for block in schedule:
        rows = np.arange(times.shape[0])[block.rows]
        assert len(rows) == len(block)
        for piece in block.pieces:
            if piece.source == source:
                keys = np.arange(n_sources)[piece.keys] if isinstance(piece.keys, slice) else piece.keys.numpy()
                assert len(keys) == len(piece) > 0
                keep = True if piece.keep is None else piece.keep.numpy()
                times[np.ix_(rows, keys)] += keep
    return times


@settings(max_examples=250, deadline=None)
@given(patterns(), lengths(), st.booleans())
def test_every_kept_pair_is_read_once(pattern: Pattern, shape: tuple[int, int], causal: bool) -> None:
    schedule = PatternSchedule(pattern, *shape, causal=causal)
    assert np.array_equal(times_read(schedule, SEQUENCE, shape[1]), pattern.mask(*shape, causal=causal))


@settings(deadline=None)
@given(patterns(), packed(), st.booleans())
def test_every_kept_pair_of_packed_documents_is_read_once(
    pattern: Pattern, bounds: tuple[list[int], list[int]], causal: bool
) -> None:
    q_bounds, k_bounds = map(tuple, bounds)
    schedule = PatternSchedule(
        pattern, q_bounds[-1], k_bounds[-1], causal=causal, cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds
    )
    mask = pattern.mask(causal=causal, cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds)
    assert np.array_equal(times_read(schedule, SEQUENCE, k_bounds[-1]), mask)


@given(packed(), st.integers(1, 3), st.integers(1, 20))
def test_every_query_reads_its_row_of_extra_keys(bounds: tuple[list[int], list[int]], r: int, block: int) -> None:
    q_bounds, k_bounds = map(tuple, bounds)
    schedule = PatternSchedule(
        Window(5) | Anchors(r, block), q_bounds[-1], k_bounds[-1], causal=True, cu_seqlens_q=q_bounds,
        cu_seqlens_k=k_bounds,
    )  # fmt: skip
    lengths_k = np.diff(k_bounds)
    expected = np.zeros((q_bounds[-1], int(sum(-(-n // block) for n in lengths_k)) * r), dtype=np.int64)
    row = 0
    for q0, q1, n_keys in zip(q_bounds[:-1], q_bounds[1:], lengths_k.tolist(), strict=True):
        for t in range(q0, q1):
            own = row + (n_keys - (q1 - q0) + t - q0) // block
            expected[t, own * r : (own + 1) * r] = 1
        row += -(-n_keys // block)
    assert np.array_equal(times_read(schedule, EXTRA, expected.shape[1]), expected)


@pytest.mark.parametrize(
    ("pattern", "times_kept"),
    [
        (Window(64) | Sinks(4), 1.5),
        (Window(64) | Sinks(4) | Strided(32), 1.6),
        (Window(64) | Random(3, block=16), 1.6),
        (Window(64) | Global([100, 900]), 1.6),
        (Full(), 1.1),
    ],
    ids=repr,
)
def test_little_is_read_in_vain(pattern: Pattern, times_kept: float) -> None:
    n = 2048
    read = sum(
        len(block) * len(piece) for block in PatternSchedule(pattern, n, n, causal=True) for piece in block.pieces
    )
    assert read <= times_kept * pattern.pairs(n)
