"""What a stack can see: reach against a walk over the tokens, and where full layers stand."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_attn.planner import Layer, Model, Scores, sight
from sparse_attn.planner.sight import hops

N = 64  # tokens of the walk


def layer(index, kind, window=None):
    rule = {"full": "full", "sliding": "window", "chunked": "chunk"}.get(kind)
    scores = (Scores("attention", 1, rule, window or 0),) if rule else ()
    recurrence = "mamba" if kind == "linear" else None
    return Layer(index, kind, "layer_types", window=window, heads=1, scores=scores, recurrence=recurrence)


def stack(*kinds, context=1 << 20):
    layers = tuple(layer(index, *kind) for index, kind in enumerate(kinds))
    return Model("made up", "llama", layers, 8, 8, 8, (), advertised_context=context)


def furthest(kinds, query):
    """How many tokens, from the furthest that influences `query` on, when information moves layer by layer."""
    seen = {query}
    for kind, window in reversed(kinds):
        before = set()
        for token in seen:
            first = max(0, token - window + 1) if kind == "sliding" else token // window * window
            before |= set(range(first, token + 1))
        seen = before
    return query - min(seen) + 1


WINDOWS = st.lists(st.tuples(st.just("sliding"), st.integers(1, 9)), min_size=1, max_size=6)
BOTH = st.lists(st.tuples(st.sampled_from(["sliding", "chunked"]), st.integers(1, 9)), min_size=1, max_size=6)


@given(WINDOWS)
def test_reach_of_windows_is_what_a_walk_finds(kinds):
    assert sight(stack(*kinds)).reach == furthest(kinds, N - 1)


@given(BOTH)
@settings(max_examples=50)
def test_reach_with_chunks_is_never_less_than_a_walk_finds(kinds):
    found = max(furthest(kinds, query) for query in range(N))
    assert sight(stack(*kinds)).reach >= min(found, N)


@given(st.lists(st.just(("chunked", 8)), min_size=1, max_size=5))
def test_chunks_alone_reach_one_chunk(kinds):
    assert sight(stack(*kinds)).reach == max(furthest(kinds, query) for query in range(N)) == 8


@given(st.integers(2, 9), st.integers(1, 40))
def test_hops_are_the_layers_that_a_walk_needs(window, tokens):
    needed = next(count for count in range(1, 80) if furthest([("sliding", window)] * count, tokens - 1) >= tokens)
    assert hops(tokens, window) == needed


def test_where_full_layers_stand():
    seen = sight(stack(("linear",), ("sliding", 16), ("full",), ("none",), ("linear",), ("full",), ("sliding", 16)))
    assert (seen.everything, seen.lowest, seen.highest) == ((2, 5), 2, 5)
    assert seen.share == pytest.approx(2 / 6)  # the block that mixes nothing does not count
    assert (seen.longest_run.first, seen.longest_run.last) == (0, 1)
    assert seen.reach is None
    assert seen.recurrent == (0, 4)


def test_a_window_no_shorter_than_the_context_hides_nothing():
    model = stack(("sliding", 4096), ("sliding", 8192), context=8192)
    assert sight(model).everything == (1,)
    assert sight(model, 4096).everything == (0, 1)
    assert sight(model, 8193).everything == ()
    assert sight(model, 8193).reach == 4095 + 8191 + 1


def test_no_layers_that_mix():
    seen = sight(dataclasses.replace(stack(("none",)), advertised_context=None))
    assert (seen.share, seen.lowest, seen.longest_run, seen.reach) == (0.0, None, None, 1)
