"""Layers under patterns that choose or learn: pairs against the patterns' own count, memory against real caches."""

from dataclasses import replace

import pytest

from sparse_attn.patterns import parse
from sparse_attn.planner import (
    decode_bytes,
    decode_flops,
    describe,
    find_gpu,
    fit,
    kv_cost,
    prefill_flops,
    sight,
    with_pattern,
)
from sparse_attn.planner.flops import pairs

HEADS, KV_HEADS, DIM = 6, 2, 8
MODEL = describe(
    {
        "model_type": "llama", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": DIM, "intermediate_size": 64, "vocab_size": 99,
        "torch_dtype": "float32", "max_position_embeddings": 4096,
    }
)  # fmt: skip
QUERIES, KEYS = HEADS * DIM, KV_HEADS * DIM


def layer_under(text):
    return with_pattern(MODEL, parse(text), layers=[1]).layers[1]


def flops_of(layer, name, tokens):
    return sum(score.flops * pairs(score, tokens) for score in layer.scores if score.name == name)


@pytest.mark.parametrize("tokens", [1, 50, 300, 1111])
@pytest.mark.parametrize(
    "text",
    [
        "topblocks(4, block=16)",
        "window(60) | sinks(4) | topblocks(4, block=16)",
        "window(60) | topblocks(4, block=16, rows=64)",
        "window(60) | hashed(2, 8, chunk=9)",
        "window(60) | sinks(4) | anchors(5, block=16)",
        "window(60) | coverblocks(0.9)",
        "sinks(4) | verticalslash(0.9)",
    ],
)
def test_pairs_are_the_pattern_s(text, tokens):
    pattern = parse(text)
    expected = pattern.pairs(tokens) + tokens * pattern.extra_keys
    assert flops_of(layer_under(text), "attention", tokens) == 4 * QUERIES * expected


@pytest.mark.parametrize("tokens", [1, 50, 300, 1111])
@pytest.mark.parametrize(
    "text",
    [
        "window(20) | random(2, block=16)",
        "window(20) | dilated(9, 4)",
        "window(20) | dilated(None, 16)",
        "window(20) | strided(16) | topblocks(2, block=16)",
        "chunked(50) | topblocks(2, block=16)",
        "window(20) | topblocks(2, block=16).within(window(200))",
        "window(20) | strided(16).within(window(64))",
    ],
)
def test_unions_cost_at_least_their_pairs_and_less_than_all(text, tokens):
    priced = flops_of(layer_under(text), "attention", tokens)
    assert priced >= 4 * QUERIES * parse(text).pairs(tokens)
    if tokens == 1111:
        assert priced < 0.3 * 4 * QUERIES * tokens * (tokens + 1) // 2


def test_what_choosing_costs_by_hand():
    n = 100
    top = layer_under("window(20) | topblocks(2, block=16)")
    met = sum(position // 16 for position in range(1, n + 1))  # whole blocks up to each query
    assert flops_of(top, "choice", n) == 2 * KEYS * met + n * (QUERIES + KEYS)
    tiles = layer_under("window(20) | topblocks(2, block=16, rows=4)")
    assert flops_of(tiles, "choice", n) == KEYS // 2 * met + n * (QUERIES + KEYS)
    hashed = layer_under("hashed(3, 8)")  # 4 directions in each of 3 rounds, 2 FLOPs for each number
    assert flops_of(hashed, "choice", n) == n * 3 * 4 * 2 * (QUERIES + KEYS)
    anchors = layer_under("anchors(4, block=16)")
    one = 2 * KEYS + 2 * 2 * KEYS  # a logit, and a weighted sum of key and value
    assert flops_of(anchors, "anchors", n) == n * (one + 4 * one // 16)


@pytest.mark.parametrize(
    ("text", "estimate"),
    [
        ("window(64) | sinks(64) | coverblocks(0.9)", 2 * QUERIES // 8 * 1000 * 1001 // 2),
        ("verticalslash(0.9, queries=32)", 2 * QUERIES * 32 * 1000),
    ],
)
def test_a_coverage_may_take_all_pairs_and_decodes_densely(text, estimate):
    cut = with_pattern(MODEL, parse(text), layers=[0])
    assert prefill_flops(cut, 1000).attention == prefill_flops(MODEL, 1000).attention + estimate
    assert decode_flops(cut, 1000) == decode_flops(MODEL, 1000)
    assert decode_bytes(cut, 1000) == decode_bytes(MODEL, 1000)
    assert kv_cost(cut, 1000).total_bytes == kv_cost(MODEL, 1000).total_bytes
    assert cut.layers[0].sees_everything


def test_chosen_blocks_keep_all_and_read_a_few():
    cut = with_pattern(MODEL, parse("window(60) | sinks(4) | topblocks(3, block=16)"))
    entry = 2 * KEYS * 4  # a key and a value in float32
    cost = kv_cost(cut, 1000, kv_dtype="fp32")
    assert cost.total_bytes == 3 * (1000 * entry + 1000 // 16 * KEYS * 4)
    assert decode_bytes(cut, 1000, kv_dtype="fp32").kv == 3 * ((60 + 4 + 48) * entry + 1000 // 16 * KEYS * 4)
    assert decode_flops(cut, 5000).attention < decode_flops(MODEL, 5000).attention / 10
    seen = sight(cut, 4096)
    assert (seen.everything, seen.chosen, seen.reach) == ((), (0, 1, 2), None)


def test_a_hash_keeps_and_reads_all():
    cut = with_pattern(MODEL, parse("window(60) | hashed(2, 8)"))
    assert kv_cost(cut, 1000) == replace(kv_cost(MODEL, 1000), layers=kv_cost(cut, 1000).layers)
    assert decode_bytes(cut, 1000).kv == decode_bytes(MODEL, 1000).kv
    assert decode_flops(cut, 5000).attention < decode_flops(MODEL, 5000).attention / 2


@pytest.mark.parametrize("tokens", [1, 16, 47, 500])
def test_anchors_keep_what_a_real_cache_keeps(tokens):
    """To the byte: the scan's state in float32, and the tokens of the open block."""
    import torch

    from sparse_attn.cache import AnchorCache, BlockCache
    from sparse_attn.nn import AnchorKeys

    anchors = AnchorKeys(KV_HEADS, DIM, r=5, block=16)
    k, v = torch.randn(2, 1, tokens, KV_HEADS, DIM)
    cache = AnchorCache(16)
    with torch.no_grad():
        cache.extend(k, v, anchors.weights)
    layer = layer_under("window(60) | anchors(5, block=16)")
    items = {item.name: item.bytes for item in kv_cost(only(layer), tokens, kv_dtype="fp32").items}
    assert items["state of anchors"] + items["open block"] == cache.nbytes
    blocks = BlockCache(16)
    blocks.extend(k, v, None)
    top = kv_cost(only(layer_under("topblocks(3, block=16)")), tokens, kv_dtype="fp32").items
    assert blocks.keys is not None
    assert {item.name: item.bytes for item in top}["keys of blocks"] == blocks.keys.nbytes


@pytest.mark.parametrize("tokens", [1, 47, 500])
def test_a_tree_needs_no_more_than_a_real_cache_keeps(tokens):
    import torch

    from sparse_attn.cache import AnchorTreeCache
    from sparse_attn.nn import AnchorTreeKeys
    from sparse_attn.patterns import AnchorTree

    tree = AnchorTree(2, fanout=2, r=3, block=16)
    cache = AnchorTreeCache(tree)
    k, v = torch.randn(2, 1, tokens, KV_HEADS, DIM)
    with torch.no_grad():
        cache.extend(k, v, AnchorTreeKeys(KV_HEADS, DIM, tree).weights)
    items = {item.name: item.bytes for item in kv_cost(only(layer_under(repr(tree))), tokens, kv_dtype="fp32").items}
    opened = tokens % 16 * 2 * KEYS * 4
    assert items["open block"] == opened
    node = 3 * 2 * KEYS * 4
    assert items["state of anchors"] == 2 * 3 * node  # two levels of fanout + 1
    if tokens == 500:
        assert cache.nbytes - opened == 2 * 4 * node  # which keeps 2 * fanout of each


def only(layer):
    """The model of that layer alone."""
    return replace(MODEL, layers=(replace(layer, index=0),))


@pytest.mark.parametrize("accounting", ["exact", "transformers", "vllm"])
@pytest.mark.parametrize(
    "text", ["window(60) | anchors(5)", "window(60) | topblocks(3)", "anchortree(2)", "hashed(2, 8)"]
)
def test_the_largest_context_is_an_edge_for_them_too(text, accounting):
    cut = with_pattern(MODEL, parse(text), layers=[0, 2])
    card = find_gpu("a100-80gb").with_memory(40 << 20)
    most = fit(cut, card, context=100, accounting=accounting).max_context
    assert most is not None
    assert fit(cut, card, context=most, accounting=accounting).fits
    assert not fit(cut, card, context=most + 1, accounting=accounting).fits


def test_terms_that_cannot_stand_together_are_refused():
    with pytest.raises(ValueError, match="cannot both choose"):
        with_pattern(MODEL, parse("hashed(2, 8) | topblocks(3)"))
