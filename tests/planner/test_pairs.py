"""The closed forms of kept pairs against a count over positions, and against patterns that mean the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_attn.patterns import Chunked, Full, Window
from sparse_attn.planner import Scores
from sparse_attn.planner.flops import keys_of, pairs

RULES = st.sampled_from(["full", "window", "chunk", "top", "summaries", "token"])


@given(RULES, st.integers(1, 40), st.none() | st.integers(1, 12), st.integers(1, 300))
def test_pairs_are_the_sum_over_positions(rule, size, top, tokens):
    score = Scores("attention", 1, rule, size, top if rule == "summaries" else None)
    assert pairs(score, tokens) == sum(keys_of(score, position) for position in range(1, tokens + 1))


@pytest.mark.parametrize("tokens", [1, 7, 64, 200])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_pairs_are_those_of_patterns(tokens, size):
    assert pairs(Scores("attention", 1, "window", size), tokens) == Window(size).pairs(tokens)
    assert pairs(Scores("attention", 1, "chunk", size), tokens) == Chunked(size).pairs(tokens)
    assert pairs(Scores("attention", 1, "full"), tokens) == Full().pairs(tokens)
    assert pairs(Scores("attention", 1, "full"), tokens, causal=False) == Full().pairs(tokens, causal=False)
    # a window of `half` tokens on each side of a query, as encoders count it
    half = size // 2
    both = Scores("attention", 1, "window", 2 * half + 1)
    assert pairs(both, tokens, causal=False) == Window(half + 1).pairs(tokens, causal=False)
