"""What a decoding layer keeps: the same for the same length, however its tokens came, and nothing of the graph."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_attn import parse
from sparse_attn.cache import AnchorCache, AnchorTreeCache, AttentionCache, BlockCache
from sparse_attn.nn import AnchorKeys, AnchorTreeKeys, SparseSelfAttention
from sparse_attn.patterns import AnchorTree

BOUNDED = [
    "window(9)",
    "window(9) | sinks(2) | anchors(3, block=8)",
    "window(20) | anchortree(2, 2, 2, 4)",
    "chunked(6) | sinks(3)",
    "dilated(4, 3) | anchors(2, block=16)",
]
GROWING = [
    "full()",
    "strided(5) | window(3)",
    "window(3) | topblocks(2, 4) | anchors(2, block=8)",
    "window(3) | hashed(1, 4, 4)",
]


def make_layer(text: str) -> SparseSelfAttention:
    layer = SparseSelfAttention(16, 2, parse(text)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def tensors(thing: object) -> Iterator[Tensor]:
    """All tensors that an object holds, however deep."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (list, tuple)):
        for one in thing:
            yield from tensors(one)
    elif type(thing).__module__.startswith("sparse_attn.cache"):
        yield from tensors(list(vars(thing).values()))


def held(cache: object) -> int:
    """Bytes of the memory that stands behind a cache's tensors, views of something larger included."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(cache)}
    return sum(storages.values())


def read(layer: SparseSelfAttention, x: Tensor, sizes: list[int]) -> tuple[Tensor, AttentionCache]:
    cache = AttentionCache(layer.pattern)
    return torch.cat([layer.step(part, cache) for part in x.split(sizes, 1)], 1), cache


def others_slow(texts: list[str], first: int) -> list[object]:
    return [*texts[:first], *(pytest.param(text, marks=pytest.mark.slow) for text in texts[first:])]


@pytest.mark.parametrize(
    "text", others_slow([BOUNDED[1], GROWING[1], BOUNDED[0], *BOUNDED[2:], GROWING[0], *GROWING[2:]], 2)
)
def test_size_hangs_on_the_length_alone(text: str) -> None:
    layer = make_layer(text)
    x = torch.randn(1, 68, 16, dtype=torch.float64)
    whole, once = read(layer, x, [68])
    for sizes in ([66, 2], [50, 12, *[1] * 6]):
        out, cache = read(layer, x, sizes)
        torch.testing.assert_close(out, whole, rtol=1e-11, atol=1e-12)
        assert (cache.length, cache.nbytes, held(cache)) == (68, once.nbytes, held(once))
        assert np.array_equal(cache.positions, once.positions)
        assert torch.equal(cache.kept()[0].isnan().any(), torch.tensor(False))


@pytest.mark.parametrize("text", BOUNDED)
def test_a_long_prompt_takes_no_more_than_a_short_one(text: str) -> None:
    layer = make_layer(text)
    sizes = [held(read(layer, torch.randn(1, n, 16, dtype=torch.float64), [n])[1]) for n in (96, 960)]
    assert sizes[0] == sizes[1]
    assert sizes[1] == read(layer, torch.randn(1, 960, 16, dtype=torch.float64), [960])[1].nbytes


def test_growing_caches_are_copied_seldom() -> None:
    cache = AttentionCache(parse("full()"))
    rooms = set()
    for _ in range(1000):
        cache.append(*torch.randn(2, 1, 1, 1, 1))
        rooms.add(cache._keys.shape[1])
    assert len(rooms) < 25
    assert max(rooms) < 1.3 * 1000


@pytest.mark.parametrize("text", BOUNDED + GROWING)
def test_no_graph_is_kept_and_steps_make_none(text: str) -> None:
    layer = make_layer(text)
    x = torch.randn(1, 21, 16, dtype=torch.float64, requires_grad=True)
    out, cache = read(layer, x, [18, 1, 1, 1])
    assert not out.requires_grad
    assert all(not t.requires_grad and t.grad_fn is None for t in tensors(cache))


def test_caches_by_themselves_keep_no_graph() -> None:
    k, v = torch.randn(2, 1, 13, 2, 4, requires_grad=True)
    tree = AnchorTree(2, fanout=2, r=1, block=4)
    anchors = AnchorKeys(2, 4, r=2, block=4)
    pooling = torch.zeros(2, 4, requires_grad=True)
    steps = {
        AttentionCache(parse("window(3)")): lambda cache, *kv: cache.append(*kv),
        AnchorCache(4): lambda cache, *kv: cache.extend(*kv, anchors.weights),
        AnchorTreeCache(tree): lambda cache, *kv: cache.extend(*kv, AnchorTreeKeys(2, 4, tree).weights),
        BlockCache(4): lambda cache, *kv: cache.extend(*kv, pooling),
    }
    for cache, step in steps.items():
        for part in (slice(0, 9), slice(9, 10), slice(10, 13)):
            step(cache, k[:, part], v[:, part])
        assert list(tensors(cache))
        assert all(not t.requires_grad and t.grad_fn is None for t in tensors(cache)), type(cache).__name__


@pytest.mark.parametrize(
    "text",
    ["strided(3, offset=2, rows='strided')", "global((2, 5))", "sinks(1).within(window(2))",
     "strided(3, offset=2, rows='strided') | anchors(2, block=4)", "global((3,)) | anchortree(2, 2, 1, 4)"],
)  # fmt: skip
def test_tokens_that_see_no_key_decode_to_what_attention_defines(text: str) -> None:
    layer = make_layer(text.replace("sinks(1).within(window(2))", "sinks(1)"))
    if "within" in text:
        layer = SparseSelfAttention(16, 2, layer.pattern.within(parse("window(2)"))).double()
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    reference = SparseSelfAttention(16, 2, layer.pattern, implementation="reference").double()
    reference.load_state_dict(layer.state_dict())
    expected = reference(x).detach()
    for sizes in ([1] * 12, [7, *[1] * 5]):
        out, _ = read(layer, x, sizes)
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    if layer.anchors is None:
        assert (expected == 0).all(-1).any()
