"""TopBlocks as a value: text, parts, budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_attn.patterns import Pattern, Sinks, TopBlocks, Window, parse
from sparse_attn.patterns.chosen import split_choice
from tests.patterns.strategies import lengths, packed, patterns, windows

choices = st.builds(TopBlocks, st.integers(1, 4), st.integers(1, 9), st.sampled_from([1, 4, 7]))


@given(patterns(), choices, st.none() | windows)
def test_text_and_parts_of_a_pattern_that_chooses(static: Pattern, term: TopBlocks, limit: Window | None) -> None:
    pattern = static | (term if limit is None else term.within(limit))
    assert parse(repr(pattern)) == pattern
    choice = split_choice(pattern)
    assert choice is not None
    assert (choice.term, choice.limit, choice.static) == (term, limit, static)
    assert split_choice(static) is None


def test_a_choice_alone_has_no_static_part_and_two_are_refused() -> None:
    choice = split_choice(TopBlocks(3))
    assert choice is not None
    assert choice.static is None
    with pytest.raises(ValueError, match=r"at most one TopBlocks term, got topblocks\(3\) and topblocks\(4\)"):
        split_choice(TopBlocks(3) | TopBlocks(4) | Window(2))


@given(patterns(), choices, st.none() | windows, lengths(), st.booleans())
def test_the_budget_counts_up_to_all_that_a_query_may_see(
    static: Pattern, term: TopBlocks, limit: Window | None, shape: tuple[int, int], causal: bool
) -> None:
    pattern = static | (term if limit is None else term.within(limit))
    n_queries, n_keys = shape
    expected = 0
    for t, row in enumerate(static.mask(*shape, causal=causal)):
        i = n_keys - n_queries + t
        visible = [j for j in range(n_keys) if j <= i or not causal]
        cut = [j for j in visible if limit is None or i - limit.left < j <= i + limit.ahead]
        expected += min(int(row.sum()) + min(len(cut), term.k * term.block), len(visible))
    assert pattern.pairs(*shape, causal=causal) == expected
    assert np.array_equal(pattern.mask(*shape, causal=causal), static.mask(*shape, causal=causal))
    assert np.array_equal(pattern.layout(*shape, causal=causal).blocks, static.layout(*shape, causal=causal).blocks)


@given(packed(), choices)
def test_documents_have_budgets_of_their_own(bounds: tuple[list[int], list[int]], term: TopBlocks) -> None:
    pattern = Sinks(2) | term
    lengths = zip(np.diff(bounds[0]).tolist(), np.diff(bounds[1]).tolist(), strict=True)
    whole = pattern.pairs(cu_seqlens_q=bounds[0], cu_seqlens_k=bounds[1])
    assert whole == sum(pattern.pairs(n_queries, n_keys) for n_queries, n_keys in lengths)


@given(lengths(), choices)
def test_tiles_are_those_that_the_queries_touch(shape: tuple[int, int], term: TopBlocks) -> None:
    n_queries, n_keys = shape
    assert term.tiles(n_queries, n_keys) == len({i // term.rows for i in range(n_keys - n_queries, n_keys)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topblocks(0)", "TopBlocks: k must be a positive integer, got 0"),
        ("topblocks(2, block=0)", "TopBlocks: block must be a positive integer"),
        ("topblocks(2, rows=-1)", "TopBlocks: rows must be a positive integer"),
    ],
)
def test_wrong_parameters_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_what_information_travels_through_a_choice() -> None:
    reach = parse("window(8) | topblocks(4)").reach(3)
    assert reach.tokens is None  # any earlier block may be chosen
    assert reach.layers_to_any is None  # none is sure to be
