"""The count of kept pairs against the mask."""

import pytest
from hypothesis import given, settings

from sparse_attn.patterns import Dilated, Full, Global, Pattern, Random, Sinks, Strided, Window
from tests.patterns.strategies import lengths, packed, patterns


@settings(max_examples=200)
@given(patterns(), lengths())
def test_pairs_counts_the_mask(pattern: Pattern, shape: tuple[int, int]) -> None:
    for causal in (True, False):
        assert pattern.pairs(*shape, causal=causal) == pattern.mask(*shape, causal=causal).sum()


@given(patterns(), packed())
def test_pairs_counts_the_mask_of_packed_documents(pattern: Pattern, bounds: tuple[list[int], list[int]]) -> None:
    q_bounds, k_bounds = bounds
    counted = pattern.pairs(cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds, causal=False)
    assert counted == pattern.mask(cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds, causal=False).sum()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_terms_that_overlap_in_every_way_count_once(causal: bool) -> None:
    pattern = (
        Window(100, 7) | Sinks(5) | Strided(48, 3) | Strided(36, 3) | Dilated(None, 30) | Dilated(9, 20)
        | Global([3, 700, 701, 1999]) | Random(4, seed=9, block=16) | Strided(90, 0, rows="strided")
    )  # fmt: skip
    assert pattern.pairs(1500, 2000, causal=causal) == pattern.mask(1500, 2000, causal=causal).sum()


def test_counts_far_beyond_what_a_mask_could_hold() -> None:
    n = 1 << 24
    assert Full().pairs(n) == n * (n + 1) // 2
    assert Full().pairs(n, causal=False) == n * n
    assert Window(1024).pairs(n) == n * 1024 - 1024 * 1023 // 2
