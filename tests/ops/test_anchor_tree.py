"""Anchor trees against the oracle, gathered whole and grown token by token; what the pattern says they see."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_attn import Anchors, AnchorTree, Chunked, Window, attention, parse
from sparse_attn.cache import AnchorTreeCache, AttentionCache
from sparse_attn.nn import AnchorTreeKeys, SparseSelfAttention
from sparse_attn.ops import TreeWeights, tree_keys
from sparse_attn.reference import tree_rows
from sparse_attn.testing.judge_attention import judge_attention

HKV, D = 2, 8
TREES = [AnchorTree(1, 2, 2, 4), AnchorTree(3, 2, 2, 4), AnchorTree(2, 3, 1, 4)]


def make(tree: AnchorTree, S: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    own = (tree.levels, tree.r, HKV, D)
    shapes = [(2, S, HKV, D), (2, S, HKV, D), (tree.levels, HKV, tree.r, D), own, own]
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("tree", TREES, ids=repr)
@pytest.mark.parametrize("S", [1, 4, 91])
def test_rows_against_the_oracle(tree: AnchorTree, S: int) -> None:
    k, v, *weights = make(tree, S)
    got = tree_keys(k, v, TreeWeights(*weights), tree)
    oracle = tree_rows(k, v, *weights, fanout=tree.fanout, block=tree.block)
    for one, other in zip(got, oracle, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    narrow = tree_keys(*(x.float() for x in (k, v)), TreeWeights(*(x.float() for x in weights)), tree)
    for one, other in zip(narrow, oracle, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_packed_documents_have_trees_of_their_own() -> None:
    tree = TREES[1]
    k, v, *weights = make(tree, 60)
    bounds = [0, 3, 3, 35, 60]
    got = tree_keys(k[0], v[0], TreeWeights(*weights), tree, cu_seqlens=bounds)
    oracle = tree_rows(k[:1], v[:1], *weights, fanout=tree.fanout, block=tree.block, cu_seqlens=bounds)
    for one, other in zip(got, oracle, strict=True):
        torch.testing.assert_close(one, other[0], rtol=1e-12, atol=1e-13)
    k[0, 3:35] = float("nan")
    after = tree_keys(k[0], v[0], TreeWeights(*weights), tree, cu_seqlens=bounds)
    for one, other in zip(after, got, strict=True):
        assert torch.equal(one[[0, *range(9, 16)]], other[[0, *range(9, 16)]])


def test_no_tokens() -> None:
    tree = TREES[0]
    k, v, *weights = make(tree, 0)
    assert tree_keys(k, v, TreeWeights(*weights), tree)[0].shape == (2, 0, 4, HKV, D)
    assert tree_keys(k[0], v[0], TreeWeights(*weights), tree, cu_seqlens=[0])[0].shape == (0, 4, HKV, D)


def test_gradients_against_finite_differences() -> None:
    tree = AnchorTree(2, 2, 1, 2)
    leaves = [x[..., :1, :3].clone().requires_grad_() for x in make(tree, 13)[:2]]
    weights = [torch.randn(2, 1, 1, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def call(k: Tensor, v: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return tree_keys(k, v, TreeWeights(*weights), tree)

    assert torch.autograd.gradcheck(call, [*leaves, *weights], fast_mode=True)


@pytest.mark.parametrize("t", [0, 17, 40])
def test_a_token_changes_no_row_of_its_own_block_or_before(t: int) -> None:
    tree = TREES[1]
    k, v, *weights = make(tree, 60, torch.float32)
    own = TreeWeights(*weights)
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, t:], changed_v[:, t:] = 9.0, -9.0
    rows = t // tree.block + 1
    for one, other in zip(tree_keys(k, v, own, tree), tree_keys(changed_k, changed_v, own, tree), strict=True):
        assert torch.equal(one[:, :rows], other[:, :rows])
        assert not torch.equal(one[:, rows], other[:, rows])
    for one, other in zip(
        grown(tree, k, v, own, [7, 30, 23]), grown(tree, changed_k, changed_v, own, [7, 30, 23]), strict=True
    ):
        assert torch.equal(one[:, : t + 1], other[:, : t + 1])


def grown(tree: AnchorTree, k: Tensor, v: Tensor, weights: TreeWeights, sizes: list[int]) -> list[Tensor]:
    """The rows that each token sees, from a cache."""
    cache, start, found = AnchorTreeCache(tree), 0, []
    for size in sizes:
        rows = cache.extend(k[:, start : start + size], v[:, start : start + size], weights)
        which = torch.arange(start, start + size) // tree.block - start // tree.block
        found.append([x[:, which] for x in rows])
        start += size
    return [torch.cat(parts, 1) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("tree", TREES, ids=repr)
def test_chunks_and_single_tokens_agree_with_the_whole(tree: AnchorTree) -> None:
    k, v, *weights = make(tree, 60)
    which = torch.arange(60) // tree.block
    whole = tree_keys(k, v, TreeWeights(*weights), tree)
    for sizes in ([1] * 60, [3, 41, 16], [60]):
        for one, other in zip(grown(tree, k, v, TreeWeights(*weights), sizes), whole, strict=True):
            torch.testing.assert_close(one, other[:, which], rtol=1e-12, atol=1e-13)


def test_the_cache_stays_as_small_as_it_was() -> None:
    tree = TREES[1]
    k, v, *weights = make(tree, 300)
    cache, sizes = AnchorTreeCache(tree), []
    for t in range(300):
        cache.extend(k[:, t : t + 1], v[:, t : t + 1], TreeWeights(*weights))
        sizes.append(cache.nbytes)
    assert max(sizes[:150]) == max(sizes)


@settings(max_examples=60)
@given(st.integers(0, 300), st.integers(1, 4), st.integers(2, 4))
def test_the_nodes_shown_cover_the_past_once_finest_first(n: int, levels: int, fanout: int) -> None:
    tree = AnchorTree(levels, fanout)
    covered: list[int] = []
    for level, shown in enumerate(tree.shown(n)):
        assert len(shown) <= fanout
        blocks = [node * fanout**level + x for node in shown for x in range(fanout**level)]
        covered = blocks + covered
    assert covered == list(range(n - len(covered), n))
    assert len(covered) == n or len(covered) * tree.block >= tree.horizon // fanout
    assert n == 0 or len(tree.shown(n)[0]) >= 1
    assert len(covered) * tree.block <= tree.horizon


def test_the_term() -> None:
    tree = parse("anchortree(3, fanout=4, r=2, block=64)")
    assert tree == AnchorTree(3, 4, 2, 64)
    assert parse(repr(tree)) == tree
    assert tree.extra_keys == 24
    assert tree.horizon == 64 * (4 + 16 + 64)
    assert (Window(4) | tree).mask(9).sum() == Window(4).pairs(9) == (Window(4) | tree).pairs(9)
    assert (Window(9) | tree).reach(2).tokens == 2 * (tree.horizon + 63) + 1
    for bad, message in (((0,), "levels must be a positive"), ((1, 1), "fanout must be at least 2, got 1")):
        with pytest.raises(ValueError, match=message):
            AnchorTree(*bad)
    with pytest.raises(ValueError, match="cannot be cut to a window"):
        tree.within(Window(4))


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_attention_takes_the_keys_of_a_tree(implementation: str) -> None:
    tree = AnchorTree(2, 2, 3, 16)
    inputs = {name: torch.randn(1, 70, heads, 16) for name, heads in (("q", 4), ("k", 2), ("v", 2))}
    inputs |= {name: torch.randn(1, 5, 12, 2, 16) for name in ("extra_k", "extra_v")}
    judge_attention(inputs, Chunked(32) | tree, implementation=implementation)
    with pytest.raises(ValueError, match="at most one term of summary keys"):
        attention(**inputs, pattern=tree | Anchors(4))


def test_a_layer_decodes_packs_and_learns() -> None:
    tree = AnchorTree(2, 2, 2, 4)
    layer = SparseSelfAttention(32, 4, Chunked(8) | tree, kv_heads=2).double()
    x = torch.randn(2, 30, 32, dtype=torch.float64)
    whole = layer(x)
    cache = AttentionCache(layer.pattern)
    with torch.no_grad():
        stepped = torch.cat([layer.step(part, cache) for part in x.split([11, *[1] * 19], 1)], 1)
    torch.testing.assert_close(stepped, whole.detach(), rtol=1e-12, atol=1e-13)
    packed = layer(torch.cat([x[0, :10], x[1]]), cu_seqlens=[0, 10, 40])
    torch.testing.assert_close(packed[10:], whole[1], rtol=1e-12, atol=1e-13)
    whole.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    with pytest.raises(NotImplementedError, match="a bidirectional layer takes Anchors"):
        SparseSelfAttention(32, 4, tree, causal=False)
    with pytest.raises(ValueError, match="kv_heads must be at least 1"):
        AnchorTreeKeys(0, 8, tree)


def test_sums_stay_wide_inside_autocast() -> None:
    tree = AnchorTree(2, fanout=2, r=2, block=4)
    k, v = torch.randn(2, 1, 20, 2, 8)
    weights = TreeWeights(torch.randn(2, 2, 2, 8), torch.zeros(2, 2, 2, 8), torch.zeros(2, 2, 2, 8))
    outside = tree_keys(k, v, weights, tree)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = tree_keys(k, v, weights, tree)
    assert all(torch.equal(one, other) for one, other in zip(inside, outside, strict=True))


@pytest.mark.parametrize("name", ["queries", "null_k", "null_v"])
def test_weights_of_another_shape_are_named(name: str) -> None:
    tree = AnchorTree(2, fanout=2, r=2, block=4)
    k, v = torch.randn(2, 1, 20, 2, 8)
    weights = TreeWeights(*(torch.zeros(2, 2, 2, 8) for _ in range(3)))
    for wrong in (torch.zeros(2, 2, 2, 7), torch.zeros(1, 2, 2, 8), None):
        with pytest.raises(ValueError, match=rf"{name} must have shape \(2, 2, 2, 8\) \(levels, .* got "):
            tree_keys(k, v, weights._replace(**{name: wrong}), tree)


COMPILED = """
import warnings
import torch
from sparse_attn import AnchorTree
from sparse_attn.ops import TreeWeights, tree_keys

warnings.simplefilter("error")
tree = AnchorTree(2, fanout=2, r=1, block=4)
k, v = torch.randn(2, 1, 20, 2, 8)
weights = TreeWeights(torch.randn(2, 2, 1, 8), *torch.randn(2, 2, 1, 2, 8))
compiled = torch.compile(lambda k, v: tree_keys(k, v, weights, tree), backend="eager", fullgraph=True)
assert torch.equal(compiled(k, v)[0], tree_keys(k, v, weights, tree)[0])
"""


@pytest.mark.slow
def test_a_tree_compiles_without_a_break() -> None:
    """In a process of its own: shapes are not checked there, which Dynamo cannot trace."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


def test_the_table_is_made_once_for_its_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = AnchorTree(2, fanout=2, r=2, block=4)
    weights = TreeWeights(torch.randn(2, 2, 2, 8), *torch.randn(2, 2, 2, 2, 8))
    calls = [torch.randn(2, 1, 23, 2, 8) for _ in range(2)]
    first = tree_keys(*calls[0], weights, tree)
    monkeypatch.setattr(AnchorTree, "shown", None)  # not asked again
    assert torch.equal(tree_keys(*calls[0], weights, tree)[0], first[0])
    tree_keys(*calls[1], weights, tree)
