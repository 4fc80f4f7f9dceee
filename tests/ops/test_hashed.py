"""Hashed attention: buckets by hand, keys pair by pair, several rounds, documents, gradients, leaks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sparse_attn import Anchors, Full, Hashed, Pattern, Sinks, TopBlocks, Window, attention, merge, parse
from sparse_attn.ops.hashed import hash_buckets, hashed_attention
from sparse_attn.patterns.hashed import split_hashed
from sparse_attn.reference import hashed_mask
from sparse_attn.testing import assert_within_budget
from tests.patterns.strategies import packed, patterns


def inputs(T: int, S: int, Hq: int = 4, Hkv: int = 2, D: int = 4, B: int = 1) -> dict[str, Tensor]:
    shapes = {"q": (B, T, Hq, D), "k": (B, S, Hkv, D), "v": (B, S, Hkv, D)}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def judge(given: dict[str, Tensor], pattern: Pattern | list[Pattern], **options: Any) -> None:
    """Output, LSE and gradients in float64 against the oracle, which reads the same buckets."""
    results = []
    for implementation in ("cpu", "reference"):
        leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
        out, lse = attention(**leaves, pattern=pattern, return_lse=True, implementation=implementation, **options)
        finite = torch.where(torch.isfinite(lse), lse, 0.0)
        (out.square().sum() + finite.sin().sum()).backward()
        results.append([out, lse, *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves.values())])
    for name, got, oracle in zip(("out", "lse", "dq", "dk", "dv"), *results, strict=True):
        assert_within_budget(name, got, oracle, oracle, floor=1e-11)


def test_buckets_are_the_nearest_of_directions_and_their_opposites() -> None:
    term = Hashed(3, 8, seed=5)
    x = torch.randn(2, 10, 4, 6)
    got = hash_buckets(x, term, kv_heads=2)
    directions = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(5))
    for r, b, t, h in torch.cartesian_prod(*map(torch.arange, (3, 2, 10, 4))).tolist():
        near = (x[b, t, h].double() @ directions[r, h // 2].double()).tolist()
        assert got[r, b, t, h] == max(range(8), key=lambda n: (near + [-y for y in near])[n])
    assert torch.equal(hash_buckets(x * 7, term, kv_heads=2), got)
    assert not torch.equal(hash_buckets(x, Hashed(3, 8, seed=6), kv_heads=2), got)


def test_which_keys_of_a_bucket_are_seen_by_hand() -> None:
    buckets = torch.tensor([[0, 1, 0, 0, 1, 0, 0]])
    seen = [row.nonzero().flatten().tolist() for row in hashed_mask(buckets, buckets, chunk=2)]
    # Bucket 0 holds 0 2 | 3 5 | 6, bucket 1 holds 1 4, cut after two keys.
    assert seen == [[0], [1], [0, 2], [0, 2, 3], [1, 4], [0, 2, 3, 5], [3, 5, 6]]


@settings(max_examples=15)
@given(st.data())
def test_hashing_beside_any_pattern(data: st.DataObject) -> None:
    n_keys = data.draw(st.integers(1, 40), label="S")
    n_queries = data.draw(st.integers(1, n_keys), label="T")
    term: Pattern = Hashed(
        data.draw(st.integers(1, 3)), data.draw(st.sampled_from([2, 6])), data.draw(st.sampled_from([1, 3, 64]))
    )
    if data.draw(st.booleans(), label="cut"):
        term = term.within(Window(9))
    pattern = data.draw(patterns()) | term if data.draw(st.booleans(), label="static") else term
    judge(inputs(n_queries, n_keys), pattern)


@settings(max_examples=6)
@given(packed())
def test_packed_documents(bounds: tuple[list[int], list[int]]) -> None:
    given = {name: x[0] for name, x in inputs(bounds[0][-1], bounds[1][-1]).items()}
    judge(given, Hashed(2, 4, 3) | Window(2), cu_seqlens_q=bounds[0], cu_seqlens_k=bounds[1])


def test_static_parts_may_differ_between_heads_and_queries_come_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_attn.ops.hashed.GATHERED", 1000)
    heads = [parse(f"{own} | hashed(2, 4, chunk=3)") for own in ("window(3)", "sinks(2) | random(1, block=4)")]
    judge(inputs(30, 40, B=2), heads, scale=0.8)


def test_everything_in_one_bucket_is_dense_attention() -> None:
    given = inputs(20, 20)
    for x in given.values():
        x.abs_()
    given["q"][..., 1:] = given["k"][..., 1:] = 0  # all point the same way
    got = attention(**given, pattern=Hashed(3, 4, chunk=64))
    torch.testing.assert_close(got, attention(**given, pattern=Full()), rtol=1e-10, atol=1e-11)


def test_rounds_merge_exactly_and_count_a_key_once() -> None:
    given = inputs(30, 30)
    terms = [Hashed(1, 4, 5), Hashed(2, 4, 5)]
    buckets = {name: hash_buckets(given[name], terms[1], 2) for name in "qk"}
    for h in range(4):
        first, both = (hashed_mask(buckets["q"][:r, 0, :, h], buckets["k"][:r, 0, :, h // 2], 5) for r in (1, 2))
        assert (both & first).sum() == first.sum()
        logits = (given["q"][0, :, h] @ given["k"][0, :, h // 2].T / 2).masked_fill(~both, -torch.inf)
        expected = torch.where(both.any(1), logits.logsumexp(1), -torch.inf)
        torch.testing.assert_close(attention(**given, pattern=terms[1], return_lse=True)[1][0, :, h], expected)


def test_a_later_token_changes_nothing_before_it() -> None:
    pattern = Window(2) | Hashed(2, 4, 2)
    given = {name: x.float() for name, x in inputs(24, 24).items()}

    def forms(x: dict[str, Tensor]) -> list[Tensor]:
        def upto(start: int, stop: int) -> Tensor:
            return attention(x["q"][:, start:stop], x["k"][:, :stop], x["v"][:, :stop], pattern)

        return [torch.cat([upto(t, min(t + step, 24)) for t in range(0, 24, step)], 1) for step in (24, 10, 1)]

    before = forms(given)
    for form in before[1:]:
        torch.testing.assert_close(form, before[0], rtol=2e-5, atol=2e-6)
    for t in (1, 13):
        changed = {name: torch.cat([x[:, :t], torch.randn_like(x[:, t:])], 1) for name, x in given.items()}
        for form, old in zip(forms(changed), before, strict=True):
            assert torch.equal(form[:, :t], old[:, :t])


def test_a_bad_document_reaches_no_other() -> None:
    pattern, bounds = Window(2) | Hashed(2, 4, 2), [0, 12, 20, 30]
    given = {name: x[0] for name, x in inputs(30, 30).items()}
    before = attention(**given, pattern=pattern, cu_seqlens_q=bounds)
    for x in given.values():
        x[12:20] = torch.nan
    leaves = {name: x.requires_grad_() for name, x in given.items()}
    after = attention(**leaves, pattern=pattern, cu_seqlens_q=bounds)
    after.nan_to_num().sum().backward()
    for start, stop in ((0, 12), (20, 30)):
        assert torch.equal(after[start:stop], before[start:stop])
        assert all(torch.isfinite(leaf.grad[start:stop]).all() for leaf in leaves.values())


def test_no_shape_hangs_on_content() -> None:
    """Tensors without content have no buckets to count: what would wait for one fails, as a CUDA graph would."""
    pattern = Window(16) | Hashed(
        2, 64, chunk=8, seed=90210
    )  # a seed of its own: directions are kept, these without content
    with FakeTensorMode():
        q, k, v = (torch.empty(2, 300, 4, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        out, lse = hashed_attention(q, k, v, [pattern], scale=0.3)
        (out.sum() + lse.sum()).backward()
    assert (out.shape, lse.shape, q.grad.shape) == (q.shape, q.shape[:3], q.shape)


def test_seeds_repeat_and_gradients_too() -> None:
    given = inputs(40, 40)
    runs = []
    for seed in (3, 3, 4):
        leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
        out = attention(**leaves, pattern=Hashed(2, 4, 3, seed=seed) | Sinks(1))
        out.square().sum().backward()
        runs.append([out, *(leaf.grad for leaf in leaves.values())])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_extra_keys_stand_beside_hashing() -> None:
    given = inputs(20, 20)
    extra = [torch.randn(1, 3, 2, 2, 4, dtype=torch.float64) for _ in range(2)]
    together = attention(**given, pattern=Hashed(1, 4, 3) | Anchors(2, 8), extra_k=extra[0], extra_v=extra[1])
    parts = [
        attention(**given, pattern=Hashed(1, 4, 3), return_lse=True),
        attention(**given, pattern=Anchors(2, 8), extra_k=extra[0], extra_v=extra[1], return_lse=True),
    ]
    torch.testing.assert_close(together, merge(*zip(*parts, strict=True))[0])


def test_the_term_as_a_value() -> None:
    pattern = parse("window(4) | hashed(2, 8, chunk=16, seed=1)")
    assert pattern == Window(4) | Hashed(2, 8, 16, 1)
    assert parse(repr(pattern)) == pattern
    rest = split_hashed(pattern)
    assert rest is not None
    assert (rest.term, rest.static) == (Hashed(2, 8, 16, 1), Window(4))
    assert pattern.pairs(1000) == sum(min(i + 1, min(4, i + 1) + 2 * 2 * 16) for i in range(1000))
    assert not Hashed(2, 8).mask(9).any()


def test_wrong_uses_are_named() -> None:
    given = inputs(8, 8)
    with pytest.raises(ValueError, match="Hashed: buckets must be even, for directions and their opposites, got 5"):
        Hashed(1, 5)
    with pytest.raises(ValueError, match=r"topblocks\(2\) and hashed\(1, 4\) cannot both choose"):
        attention(**given, pattern=Hashed(1, 4) | TopBlocks(2))
    with pytest.raises(ValueError, match="all KV heads must have the same Hashed term"):
        attention(**given, pattern=[Hashed(1, 4) | Window(1), Hashed(1, 6) | Window(1)])
    with pytest.raises(
        NotImplementedError, match=r"Hashed ranks keys among earlier ones .* use TopBlocks for causal=False"
    ):
        attention(**given, pattern=Hashed(1, 4), causal=False)
