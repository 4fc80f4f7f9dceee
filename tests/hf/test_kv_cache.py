"""KV-cache arithmetic: live keys against the mask itself, bytes against transformers' own cache."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from sparse_attn import Chunked, Dilated, Full, Global, Random, Sinks, Strided, Window
from sparse_attn.hf import cache_bytes, live_keys

count = st.integers(1, 12)
rows = st.sampled_from(["all", "strided"])
terms = st.one_of(
    st.builds(Window, count),
    st.builds(Chunked, count),
    st.builds(Sinks, count),
    st.builds(Full),
    st.builds(Dilated, st.none() | count, count),
    st.builds(lambda stride, offset, rows: Strided(stride, offset % stride, rows), count, count, rows),
    st.builds(Global, st.lists(st.integers(0, 40), max_size=3)),
)
limits = st.none() | st.builds(Window, st.integers(1, 20))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(terms, limits), min_size=1, max_size=3), st.integers(0, 30))
def test_live_keys_are_those_that_a_later_query_sees(parts, n_keys):
    pattern = None
    for term, limit in parts:
        cut = term if limit is None else term.within(limit)
        pattern = cut if pattern is None else pattern | cut
    later = pattern.mask(n_keys + 160)[n_keys:, :n_keys]  # beyond every stride, window and position above
    assert live_keys(pattern, n_keys) == int(later.any(0).sum())


def test_random_blocks_are_bounded_from_above():
    pattern = Random(1, block=4) | Window(2)
    seen = int(pattern.mask(400)[64:, :64].any(0).sum())
    assert seen <= live_keys(pattern, 64) == 64
    assert live_keys(pattern.within(Window(9)), 64) == 8


def test_rows_with_their_own_globals_count_as_the_largest():
    assert live_keys(Global(((1, 2), (3,))), 10) == 2


@pytest.mark.parametrize("n_tokens", [1, 6, 7, 8, 30])
def test_allocated_bytes_are_those_of_the_models_cache(family, n_tokens):
    model = family.model
    cache = DynamicCache(config=model.config)
    ids = torch.randint(2, 60, (2, n_tokens))
    with torch.no_grad():
        model(ids[:, : n_tokens - n_tokens // 2], past_key_values=cache, use_cache=True)
        if n_tokens > 1:
            model(ids[:, n_tokens - n_tokens // 2 :], past_key_values=cache, use_cache=True)
    actual = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(model, None, n_tokens, batch_size=2).allocated == actual
    assert cache_bytes(model.config, None, n_tokens, batch_size=2, bytes_per_number=4).allocated == actual


def test_needed_bytes_follow_the_layers_patterns(family):
    per_key = 2 * 2 * 16 * 4  # keys and values, KV heads, head dim, float32
    keys = [3 + 1 if window is None else 3 for window in family.windows[:1]] + [
        100 if window is None else window - 1 for window in family.windows[1:]
    ]
    assert cache_bytes(family.model, {0: Window(4) | Sinks(1)}, 100).needed == sum(keys) * per_key
    dense = cache_bytes(family.model, None, 100)
    assert dense.needed == dense.allocated


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_wrong_counts(family):
    for wrong in (-1, 2.5, True):
        with pytest.raises(ValueError, match="n_tokens"):
            cache_bytes(family.model, None, wrong)
    with pytest.raises(ValueError, match="batch_size"):
        cache_bytes(family.model, None, 5, batch_size=0)
    with pytest.raises(ValueError, match="layer 9"):
        cache_bytes(family.model, {9: Full()}, 5)


def test_a_million_tokens_take_no_time():
    pattern = Window(4096) | Sinks(4) | Strided(1024)
    columns = np.union1d(np.arange(4), np.arange(0, 1_048_576, 1024))
    tail = np.arange(1_048_576 - 4095, 1_048_576)
    assert live_keys(pattern, 1_048_576) == len(np.union1d(columns, tail))
