"""What no layer takes: one table of arguments, each refused in one sentence that names it, what came, and what is wanted."""

import re

import pytest
import torch

from sparse_attn import Anchors, AnchorTree, CoverBlocks, Full, Hashed, Sinks, TopBlocks, Window, parse
from sparse_attn.cache import AnchorCache, AnchorTreeCache, AttentionCache, BlockCache
from sparse_attn.nn import (
    AnchorKeys,
    AnchorTreeKeys,
    BlockSelector,
    RoutedSelfAttention,
    Router,
    SharedSelfAttention,
    SparseSelfAttention,
    budget_terms,
    rotate,
)
from sparse_attn.ops import TreeWeights

CHOOSING = Window(4) | TopBlocks(2, 4)
TREE = AnchorTree(2, fanout=2, r=1, block=4)


def sparse(dim=32, heads=4, pattern=None, **options):
    return SparseSelfAttention(dim, heads, Window(4) if pattern is None else pattern, **options)


def shared(dim=32, heads=4, pattern=None, **options):
    return SharedSelfAttention(dim, heads, Window(4) | Hashed(1, 4, 4) if pattern is None else pattern, **options)


def routed(**options):
    return RoutedSelfAttention(32, 4, CHOOSING, **options)


def router(dim=8, kv_heads=2, pattern=CHOOSING, **options):
    return Router(dim, kv_heads, pattern, **options)


def anchors(kv_heads=2, head_dim=8, **options):
    return AnchorKeys(kv_heads, head_dim, **{"r": 3, "block": 4, **options})


def selector(dim=8, heads=4, kv_heads=2, head_dim=6, pattern=CHOOSING):
    return BlockSelector(dim, heads, kv_heads, head_dim, pattern)


def filled(pattern=None) -> AttentionCache:
    """A cache of two tokens of two sequences."""
    layer = sparse(pattern=pattern)
    cache = AttentionCache(layer.pattern)
    layer.step(x(2, 2, 32), cache)
    return cache


def x(*shape):
    return torch.randn(*shape)


CONSTRUCTORS = [
    # SparseSelfAttention, and the layers made of it
    (lambda: sparse(dim=0), "dim must be at least 1, got 0"),
    (lambda: sparse(dim=32.0), "dim must be an integer of at least 1, got 32.0"),
    (lambda: sparse(dim=30), "dim must be a multiple of heads 4 unless head_dim is given, got 30"),
    (lambda: sparse(heads=0), "heads must be at least 1, got 0"),
    (lambda: sparse(heads="4"), "heads must be an integer of at least 1, got '4'"),
    (lambda: sparse(heads=True), "heads must be an integer of at least 1, got True"),
    (lambda: sparse(kv_heads=3), "heads must be a multiple of kv_heads 3, got 4"),
    (lambda: sparse(kv_heads=0), "kv_heads must be at least 1, got 0"),
    (lambda: sparse(kv_heads=8), "heads must be a multiple of kv_heads 8, got 4"),
    (lambda: sparse(head_dim=0), "head_dim must be at least 1, got 0"),
    (lambda: sparse(head_dim=8.5), "head_dim must be an integer of at least 1, got 8.5"),
    (
        lambda: sparse(pattern="window(4)"),
        "pattern must be a Pattern such as Window(512) | Anchors(64), got 'window(4)'",
    ),
    (lambda: sparse(pattern=[Window(4)] * 4), "pattern must be a Pattern"),
    (lambda: sparse(causal=1), "causal must be True or False, got 1"),
    (lambda: sparse(rope_theta=0.0), "rope_theta must be a positive number or None, got 0.0"),
    (lambda: sparse(rope_theta=float("nan")), "rope_theta must be a positive number or None, got nan"),
    (lambda: sparse(rope_theta="1e4"), "rope_theta must be a positive number or None, got '1e4'"),
    (lambda: sparse(rope_fraction=-0.1), "rope_fraction must lie between 0 and 1, got -0.1"),
    (lambda: sparse(rope_fraction=None), "rope_fraction must lie between 0 and 1, got None"),
    (lambda: sparse(pooling="max"), "pooling must be 'learned' or 'mean', got 'max'"),
    (
        lambda: sparse(implementation="cuda"),
        "implementation must be None or one of cpu, reference, triton, hopper, got 'cuda'",
    ),
    (lambda: sparse(implementation=["cpu"]), "implementation must be None or one of"),
    (
        lambda: sparse(pattern=Window(4) | CoverBlocks(0.9)),
        "pattern must have a TopBlocks term, which says what is chosen",
    ),
    (lambda: shared(kv_heads=2), "kv_heads must be left out: each of 4 query heads has its keys, got 2"),
    (lambda: shared(dim=-32), "dim must be at least 1, got -32"),
    (lambda: shared(pattern=None, heads=0), "heads must be at least 1, got 0"),
    (lambda: routed(causal=False), "causal must be True: a router reads the first token"),
    (lambda: routed(run=0), "block must be at least 1, got 0"),
    (lambda: routed(target=-1), "target must be a number of keys from 0 on, or None, got -1"),
    (lambda: routed(target="16"), "target must be a number of keys from 0 on, or None, got '16'"),
    (lambda: routed(budgets=(0, 4)), "budgets must lie between 0 and topblocks(2, 4)'s k, at least one, got (0, 4)"),
    (lambda: RoutedSelfAttention(32, 4, Window(4)), "pattern must have a TopBlocks term with rows=1"),
    # Router
    (lambda: router(dim=0), "dim must be at least 1, got 0"),
    (lambda: router(kv_heads=-1), "kv_heads must be at least 1, got -1"),
    (
        lambda: router(pattern="topblocks(2)"),
        "pattern must have a TopBlocks term with rows=1, whose blocks are routed, got 'topblocks(2)'",
    ),
    (lambda: router(pattern=TopBlocks(2, 4)), "pattern must have a static term"),
    (lambda: router(budgets=()), "budgets must lie between 0 and topblocks(2, 4)'s k, at least one, got ()"),
    (lambda: router(budgets=(-1, 2)), "budgets must lie between 0 and topblocks(2, 4)'s k, at least one, got (-1, 2)"),
    (lambda: router(budgets=(0, 1.5)), "budgets must be numbers of blocks such as (0, 2), got (0, 1.5)"),
    (lambda: router(budgets=2), "budgets must be numbers of blocks such as (0, 2), got 2"),
    (lambda: router(block=-8), "block must be at least 1, got -8"),
    (lambda: router(block=2.0), "block must be an integer of at least 1, got 2.0"),
    (lambda: router(temperature=0.0), "temperature must be a positive number, got 0.0"),
    (lambda: router(temperature=float("inf")), "temperature must be a positive number, got inf"),
    # AnchorKeys, AnchorTreeKeys, BlockSelector
    (lambda: anchors(kv_heads=0), "kv_heads must be at least 1, got 0"),
    (lambda: anchors(head_dim=None), "head_dim must be an integer of at least 1, got None"),
    (lambda: anchors(r=0), "r must be at least 1, got 0"),
    (lambda: anchors(block=-128), "block must be at least 1, got -128"),
    (lambda: anchors(pooling=None), "pooling must be 'learned' or 'mean', got None"),
    (lambda: anchors(causal="yes"), "causal must be True or False, got 'yes'"),
    (lambda: AnchorTreeKeys(0, 8, TREE), "kv_heads must be at least 1, got 0"),
    (lambda: AnchorTreeKeys(2, 8.0, TREE), "head_dim must be an integer of at least 1, got 8.0"),
    (lambda: AnchorTreeKeys(2, 8, Anchors(4)), "tree must be an AnchorTree term, got anchors(4)"),
    (lambda: selector(dim=0), "dim must be at least 1, got 0"),
    (lambda: selector(heads=3), "heads must be a multiple of kv_heads 2, got 3"),
    (lambda: selector(head_dim=-6), "head_dim must be at least 1, got -6"),
    (
        lambda: selector(pattern=Window(4)),
        "pattern must have a TopBlocks term, which says what is chosen, got window(4)",
    ),
    (lambda: selector(pattern=None), "pattern must have a TopBlocks term, which says what is chosen, got None"),
    # caches
    (lambda: AttentionCache("window(4)"), "pattern must be a Pattern such as Window(2048) | Sinks(4), got 'window(4)'"),
    (lambda: AnchorCache(0), "block must be at least 1, got 0"),
    (lambda: AnchorCache(1.5), "block must be an integer of at least 1, got 1.5"),
    (lambda: BlockCache(-4), "block must be at least 1, got -4"),
    (lambda: AnchorTreeCache(4), "tree must be an AnchorTree term, got 4"),
]

CALLS = [
    # whole sequences
    (lambda: sparse()(x(1, 5, 31)), "x must be a tensor of shape (B, T, 32), got (1, 5, 31)"),
    (lambda: sparse()(x(5, 32)), "x must be a tensor of shape (B, T, 32), got (5, 32)"),
    (
        lambda: sparse()(x(1, 5, 32), cu_seqlens=[0, 5]),
        "x must be a tensor of shape (T, 32) with cu_seqlens, got (1, 5, 32)",
    ),
    (lambda: sparse()([[1.0] * 32]), "x must be a tensor of shape (B, T, 32), got list"),
    (lambda: sparse()(x(5, 32), cu_seqlens=[0, 4]), "cu_seqlens must run from 0 to 5 and never decrease, got [0, 4]"),
    (lambda: sparse()(x(5, 32), cu_seqlens=[0, 4, 2, 5]), "cu_seqlens must run from 0 to 5 and never decrease"),
    (
        lambda: sparse()(x(5, 32), cu_seqlens=[0, 2.5, 5]),
        "cu_seqlens must be a one-dimensional integer tensor or list, got [0, 2.5, 5]",
    ),
    (
        lambda: sparse()(x(5, 32), cu_seqlens=torch.tensor([0.0, 5.0])),
        "cu_seqlens must be a one-dimensional integer tensor or list, got torch.float32",
    ),
    (
        lambda: sparse()(x(5, 32), cu_seqlens=torch.tensor([[0, 5]])),
        "cu_seqlens must be a one-dimensional integer tensor or list",
    ),
    (lambda: sparse()(x(5, 32), cu_seqlens=5), "cu_seqlens must be a one-dimensional integer tensor or list, got 5"),
    (lambda: shared()(x(1, 5, 16)), "x must be a tensor of shape (B, T, 32), got (1, 5, 16)"),
    (lambda: routed()(x(1, 5, 16)), "x must be a tensor of shape (B, T, 32), got (1, 5, 16)"),
    (lambda: routed().spent_pairs(), "spent_pairs: nothing was spent yet: call the layer first"),
    (lambda: routed().budget_term(), "budget_term: the layer has no target"),
    (lambda: routed(target=4).budget_term(), "budget_term: nothing to take: call the layer in training mode"),
    (lambda: budget_terms(sparse()), "budget_terms: SparseSelfAttention has no RoutedSelfAttention with a target"),
    (lambda: router()(x(1, 5, 9)), "x must be a tensor of shape ([B,] T, 8), got (1, 5, 9)"),
    (lambda: router()(x(5, 8), cu_seqlens=[0, 6]), "cu_seqlens must run from 0 to 5 and never decrease, got [0, 6]"),
    (lambda: anchors()(x(1, 5, 3, 8), x(1, 5, 3, 8)), "query must have shape (3, 8) (Hkv, D), got (2, 8)"),
    (
        lambda: anchors(pooling="mean")(x(1, 5, 3, 8), x(1, 5, 3, 8)),
        "queries must have shape (Hkv, R, D) with Hkv=3 and D=8, got (2, 3, 8)",
    ),
    (lambda: anchors()(x(1, 5, 2, 8), x(1, 4, 2, 8)), "v must have k's shape (1, 5, 2, 8)"),
    (
        lambda: anchors()(None, x(1, 5, 2, 8)),
        "k must be a floating-point tensor of shape ([B,] S, Hkv, D), got NoneType",
    ),
    (
        lambda: AnchorTreeKeys(2, 8, TREE)(x(1, 5, 3, 8), x(1, 5, 3, 8)),
        "queries must have shape (2, 3, 1, 8) (levels, Hkv, R, D)",
    ),
    (lambda: AnchorTreeKeys(2, 8, TREE)(x(1, 5, 2, 8).int(), x(1, 5, 2, 8).int()), "k must be a floating-point tensor"),
    (
        lambda: selector()(x(1, 5, 7), x(1, 5, 4, 6), x(1, 2, 2, 6), x(1, 2, 2, 6)),
        "x must have shape (1, 5, 8) ([B,] T, dim), got (1, 5, 7)",
    ),
    (lambda: selector().compress(x(1, 5, 2, 7), x(1, 5, 2, 7)), "query must have shape (2, 7) (Hkv, D), got (2, 6)"),
    (
        lambda: rotate(x(1, 3, 2, 8), torch.arange(4), 1e4),
        "positions must have shape (T,) for x of shape (..., T, H, D), got (4,) and (1, 3, 2, 8)",
    ),
    (lambda: rotate(x(1, 3, 2, 8), torch.arange(3), -1.0), "theta must be a positive number, got -1.0"),
    (
        lambda: rotate(x(1, 3, 2, 8), torch.arange(3), 1e4, dims=10),
        "dims must be an even number up to the head dim 8, got 10",
    ),
    (
        lambda: rotate(x(1, 3, 2, 8), torch.arange(3), 1e4, dims=4.0),
        "dims must be an even number up to the head dim 8, got 4.0",
    ),
    # decoding
    (
        lambda: sparse().step(x(1, 1, 32), None),
        "cache must be AttentionCache(window(4)) of sparse_attn.cache, got NoneType",
    ),
    (lambda: sparse().step(x(1, 1, 32), {}), "cache must be AttentionCache(window(4)) of sparse_attn.cache, got dict"),
    (
        lambda: sparse().step(x(1, 1, 32), AnchorCache(4)),
        "cache must be AttentionCache(window(4)) of sparse_attn.cache, got AnchorCache",
    ),
    (
        lambda: sparse().step(x(1, 1, 32), AttentionCache(Window(5))),
        "the layer's own pattern, got a cache for window(5)",
    ),
    (lambda: sparse().step(x(1, 0, 32), AttentionCache(Window(4))), "x must hold at least one token, got none"),
    (lambda: sparse().step(x(1, 32), AttentionCache(Window(4))), "x must be a tensor of shape (B, T, 32), got (1, 32)"),
    (lambda: sparse().step(x(1, 1, 32), filled()), "k must have batch size 2 as before, got 1"),
    (
        lambda: sparse(kv_heads=2).step(x(2, 1, 32), filled()),
        "k must go on with (Hkv, D) = (4, 8), torch.float32 on cpu as before, got (2, 8)",
    ),
    (
        lambda: sparse().double().step(x(2, 1, 32).double(), filled()),
        "k must go on with (Hkv, D) = (4, 8), torch.float32 on cpu as before",
    ),
    (lambda: AttentionCache(Full()).append(x(1, 3, 2, 8), x(1, 3, 2, 4)), "v must have k's shape (1, 3, 2, 8)"),
    (
        lambda: AttentionCache(Full()).append(x(3, 2, 8), x(3, 2, 8)),
        "k must be a tensor of shape (B, T, Hkv, D), got (3, 2, 8)",
    ),
    (lambda: AttentionCache(Full()).kept(), "kept: the cache is empty: append keys and values first"),
    (lambda: AttentionCache(Full()).seen_by_last(), "seen_by_last: the cache is empty: append keys and values first"),
    (lambda: BlockCache(4).extend(x(1, 0, 2, 8), x(1, 0, 2, 8), None), "k must hold at least one token, got none"),
    (
        lambda: AnchorTreeCache(TREE).extend(
            x(1, 1, 2, 8), x(1, 1, 2, 8), TreeWeights(x(2, 2, 1, 8), x(2, 1, 8, 2), x(2, 1, 2, 8))
        ),
        "null_k must have shape (2, 1, 2, 8) (levels, R, Hkv, D)",
    ),
    (
        lambda: AnchorTreeCache(TREE).extend(
            x(1, 1, 2, 8), x(1, 1, 2, 8), TreeWeights(x(2, 2, 1, 8), x(2, 1, 2, 8), None)
        ),
        "null_v must have shape (2, 1, 2, 8) (levels, R, Hkv, D) on k's device cpu for anchortree(2, 2, 1, 4), got None",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [*CONSTRUCTORS, *CALLS], ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bad_argument_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sparse(pattern=Window(4) | TREE, causal=False),
            "AnchorTree is causal: a bidirectional layer takes Anchors",
        ),
        (lambda: sparse(causal=False).step(x(1, 1, 32), None), "step: a bidirectional layer reads whole sequences"),
        (lambda: routed().step(x(1, 1, 32), AttentionCache(CHOOSING)), "step: a routed layer reads whole sequences"),
        (lambda: AttentionCache(parse("global(((1,), (2,)))")), "decode each example with its own pattern"),
    ],
)
def test_what_is_not_supported_is_said(call, message: str) -> None:
    with pytest.raises(NotImplementedError, match=re.escape(message)):
        call()


def test_good_values_at_the_edges_are_taken() -> None:
    sparse(dim=1, heads=1, rope_fraction=0, rope_theta=None)(x(1, 2, 1))
    sparse(dim=5, heads=2, head_dim=3, pattern=Window(4) | Sinks(1))(x(1, 2, 5))
    router(budgets=[2], temperature=2, block=100)(x(1, 0, 8))
    assert [count for count, _ in router().options] == [0, 1, 2]
    assert [count for count, _ in Router(8, 2, Window(4) | TopBlocks(16)).options] == [0, 4, 16]
    assert [count for count, _ in Router(8, 2, Window(4) | TopBlocks(1)).options] == [0, 1]
