"""The mask against the definitions of the terms, spelled out pair by pair."""

import numpy as np
import pytest
from hypothesis import given

from sparse_attn.patterns import Anchors, Chunked, Dilated, Full, Global, Pattern, Random, Sinks, Strided, Window
from tests.patterns.strategies import lengths, packed, patterns, windows

RULES = {
    "window": (Window(4), lambda i, j, causal: i - 4 < j and (j <= i if causal else j < i + 4)),
    "window-right": (Window(4, 2), lambda i, j, causal: i - 4 < j <= i + 2),
    "window-right-0": (Window(4, 0), lambda i, j, causal: i - 4 < j <= i),
    "chunked": (Chunked(5), lambda i, j, causal: i // 5 == j // 5),
    "full": (Full(), lambda i, j, causal: True),
    "dilated": (Dilated(3, 4), lambda i, j, causal: (i - j) % 4 == 0 and abs(i - j) < 12),
    "dilated-unlimited": (Dilated(None, 3), lambda i, j, causal: (i - j) % 3 == 0),
    "strided": (Strided(6, 2), lambda i, j, causal: j % 6 == 2),
    "strided-rows": (Strided(6, 2, rows="strided"), lambda i, j, causal: j % 6 == 2 and i % 6 == 2),
    "sinks": (Sinks(3), lambda i, j, causal: j < 3),
    "global": (Global([2, 9, 400]), lambda i, j, causal: i in (2, 9) or j in (2, 9)),
    "anchors": (Anchors(4), lambda i, j, causal: False),
    "random": (
        Random(2, seed=5, block=4),
        lambda i, j, causal: j // 4 in Random(2, seed=5, block=4).draw(i // 4, i // 4 if causal else 8),
    ),
}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", RULES)
def test_each_term_keeps_what_its_definition_says(name: str, causal: bool) -> None:
    pattern, rule = RULES[name]
    n_queries, n_keys = 20, 30
    mask = pattern.mask(n_queries, n_keys, causal=causal)
    for t in range(n_queries):
        i = n_keys - n_queries + t
        for j in range(n_keys):
            assert mask[t, j] == (rule(i, j, causal) and (j <= i or not causal)), (i, j)


@given(patterns(), patterns(), lengths())
def test_a_union_keeps_what_either_keeps(a: Pattern, b: Pattern, shape: tuple[int, int]) -> None:
    for causal in (True, False):
        either = a.mask(*shape, causal=causal) | b.mask(*shape, causal=causal)
        assert np.array_equal((a | b).mask(*shape, causal=causal), either)
        assert np.array_equal((b | a).mask(*shape, causal=causal), either)


@given(patterns(), windows, lengths())
def test_within_keeps_what_both_keep(pattern: Pattern, window: Window, shape: tuple[int, int]) -> None:
    for causal in (True, False):
        both = pattern.mask(*shape, causal=causal) & window.mask(*shape, causal=causal)
        assert np.array_equal(pattern.within(window).mask(*shape, causal=causal), both)


@given(patterns(), packed())
def test_documents_do_not_meet_and_count_their_own_positions(
    pattern: Pattern, bounds: tuple[list[int], list[int]]
) -> None:
    q_bounds, k_bounds = bounds
    mask = pattern.mask(cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds)
    assert mask.shape == (q_bounds[-1], k_bounds[-1])
    for q0, q1, k0, k1 in zip(q_bounds[:-1], q_bounds[1:], k_bounds[:-1], k_bounds[1:], strict=True):
        assert np.array_equal(mask[q0:q1, k0:k1], pattern.mask(q1 - q0, k1 - k0))
        mask[q0:q1, k0:k1] = False
    assert not mask.any()


@given(patterns(), lengths())
def test_a_query_suffix_sees_what_it_sees_in_the_whole(pattern: Pattern, shape: tuple[int, int]) -> None:
    n_queries, n_keys = shape
    for causal in (True, False):
        whole = pattern.mask(n_keys, causal=causal)
        assert np.array_equal(pattern.mask(n_queries, n_keys, causal=causal), whole[n_keys - n_queries :])


@given(patterns(), lengths())
def test_a_causal_choice_stays_as_the_sequence_grows(pattern: Pattern, shape: tuple[int, int]) -> None:
    shorter, longer = shape
    assert np.array_equal(pattern.mask(longer)[:shorter, :shorter], pattern.mask(shorter))


def test_random_draws_distinct_earlier_blocks_of_every_kind() -> None:
    term = Random(3, seed=1)
    drawn = [term.draw(b, b) for b in range(1, 400)]
    assert all(len(set(blocks)) == len(blocks) == min(3, b) for b, blocks in enumerate(drawn, start=1))
    assert all(0 <= c < b for b, blocks in enumerate(drawn, start=1) for c in blocks)
    assert drawn != [Random(3, seed=2).draw(b, b) for b in range(1, 400)]
    # Uniform: over many query blocks the drawn blocks' relative positions average one half.
    relative = np.concatenate([(np.array(blocks) + 0.5) / b for b, blocks in enumerate(drawn, start=1) if b > 100])
    assert abs(relative.mean() - 0.5) < 4 * (1 / 12 / len(relative)) ** 0.5


def test_global_positions_may_differ_between_documents_and_examples() -> None:
    pattern = Window(2) | Global([[0], [3, 1]])
    assert pattern.examples == 2
    assert pattern.example(1) == Window(2) | Global([1, 3])
    mask = pattern.mask(cu_seqlens_q=[0, 4, 9])
    assert np.array_equal(mask[:4, :4], pattern.example(0).mask(4))
    assert np.array_equal(mask[4:, 4:], pattern.example(1).mask(5))
    with pytest.raises(ValueError, match=r"positions for 2 examples: choose one"):
        pattern.mask(4)
    with pytest.raises(ValueError, match=r"for 2 documents, but cu_seqlens_q names 3"):
        pattern.mask(cu_seqlens_q=[0, 1, 2, 3])
