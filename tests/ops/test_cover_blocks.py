"""Attention through what covers a share of the mass: dense at coverage 1, the fewest blocks below, documents apart."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_attn import (
    CoverBlocks,
    Full,
    Sinks,
    Strided,
    TopBlocks,
    VerticalSlash,
    Window,
    attention,
    parse,
    select_blocks,
)
from sparse_attn.ops import selected_pairs
from sparse_attn.ops.cover_blocks import heaviest_blocks
from sparse_attn.patterns.chosen import split_choice
from sparse_attn.testing import assert_within_budget
from sparse_attn.testing.judge_attention import judge_attention

COVER = CoverBlocks(0.6, block=8, rows=16, stride=4)
SLASH = VerticalSlash(0.6, queries=8, block=4, rows=16)
STATIC = [Window(16) | Sinks(3), Window(5), Window(24) | Sinks(20), Sinks(7), Window(5) | Strided(4)]
SHAPES = {"whole": (70, 70), "last-queries": (19, 61), "one-query": (1, 50), "one-tile": (16, 16), "one-key": (1, 1)}


def inputs(n_queries, n_keys, dtype=torch.float32, batch=(2,)):
    shapes = ((n_queries, 4), (n_keys, 2), (n_keys, 2))
    return [torch.randn(*batch, length, heads, 16).to(dtype) for length, heads in shapes]


def whole(term):
    """The same term with coverage 1."""
    return parse(repr(term).replace("0.6", "1.0"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("term", [COVER, SLASH], ids=["cover", "slash"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_coverage_1_is_dense_attention(shape, term, dtype):
    q, k, v = inputs(*shape, dtype)
    got = attention(q, k, v, Window(16) | Sinks(2) | whole(term))
    oracle = attention(q.double(), k.double(), v.double(), Full(), implementation="reference")
    mask = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
    wide = [x.transpose(1, 2).repeat_interleave(4 // x.shape[2], 1) for x in (q, k, v)]
    plain = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=mask).transpose(1, 2)
    assert_within_budget("out", got, oracle, plain)


@pytest.mark.parametrize("term", [COVER, SLASH], ids=["cover", "slash"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_attention_is_that_over_the_chosen_blocks(shape, term):
    q, k, v = inputs(*shape)
    pattern = Window(16) | Sinks(2) | term
    selected = select_blocks(q, k, pattern, scale=16**-0.5)
    assert selected.shape[:3] == (2, split_choice(pattern).term.tiles(*shape), 4)
    judge_attention({"q": q, "k": k, "v": v}, pattern, implementation="cpu", gradients=False, selected=selected)
    assert torch.equal(attention(q, k, v, pattern), attention(q, k, v, pattern, selected=selected))


@given(st.integers(1, 7), st.floats(0.05, 0.99), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_the_fewest_candidates_that_cover(blocks, coverage, seed):
    generator = torch.Generator().manual_seed(seed)
    mass = torch.randint(0, 6, (1, 1, 1, blocks), generator=generator).float()
    candidates = torch.rand(1, 1, blocks, generator=generator) < 0.7
    kept = heaviest_blocks(mass, candidates, coverage)[0, 0, 0]
    own, total = mass[0, 0, 0], float(mass.sum())
    assert not (kept & ~candidates[0, 0]).any()
    given_away = float(own[~candidates[0, 0]].sum())

    def fewest(share: float) -> int:
        chosen = [[b for b in range(blocks) if choice >> b & 1] for choice in range(1 << blocks)]
        counts = [
            len(some)
            for some in chosen
            if candidates[0, 0, some].all() and given_away + float(own[some].sum()) >= coverage * total + share
        ]
        return min(counts, default=blocks)

    assert fewest(-1e-4) <= int(kept.sum()) <= fewest(1e-4)  # where the share is hit exactly, rounding decides
    assert given_away + float(own[kept].sum()) >= coverage * total - 1e-4


def test_equal_masses_go_to_the_lower_block_and_nan_weighs_nothing():
    mass = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [float("nan"), 3.0, 1.0, float("nan"), 0.0]])[None, None]
    kept = heaviest_blocks(mass, torch.ones(1, 2, 5, dtype=torch.bool), 0.5)
    assert kept[0, 0].int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    "bounds", [([0, 9, 9, 30], [0, 20, 23, 44]), ([0, 1, 13], [0, 17, 29])], ids=["three-one-empty", "one-query"]
)
def test_documents_choose_as_if_alone(bounds):
    lengths = list(zip(np.diff(bounds[0]).tolist(), np.diff(bounds[1]).tolist(), strict=True))
    torch.manual_seed(sum(bounds[1]))
    q, k, v = inputs(bounds[0][-1], bounds[1][-1], batch=())
    where = {"cu_seqlens_q": bounds[0], "cu_seqlens_k": bounds[1]}
    for term in (CoverBlocks(0.5, block=2, rows=4, stride=2), VerticalSlash(0.5, queries=3, block=2, rows=4)):
        pattern = Window(4) | term
        out = attention(q, k, v, pattern, **where)
        selected = select_blocks(q, k, pattern, scale=0.25, **where)
        pairs = torch.zeros(4, dtype=torch.int64)
        for (n_queries, n_keys), q1, k1 in zip(lengths, bounds[0][1:], bounds[1][1:], strict=True):
            own = q[None, q1 - n_queries : q1], k[None, k1 - n_keys : k1], v[None, k1 - n_keys : k1]
            torch.testing.assert_close(out[None, q1 - n_queries : q1], attention(*own, pattern), rtol=1e-4, atol=1e-5)
            alone = select_blocks(own[0], own[1], pattern, scale=0.25)
            pairs += selected_pairs(alone, pattern, n_queries, n_keys)[0]
        assert torch.equal(selected_pairs(selected, pattern, q.shape[0], k.shape[0], **where), pairs)


def test_nan_in_one_document_spoils_no_other():
    q, k, v = inputs(60, 60, batch=())
    where = {"cu_seqlens_q": [0, 30, 60]}
    for term in (COVER, SLASH):
        pattern = Window(16) | term
        clean = attention(q, k, v, pattern, **where)
        spoiled = [x.clone().index_fill_(0, torch.arange(30), float("nan")) for x in (q, k, v)]
        assert torch.equal(attention(*spoiled, pattern, **where)[30:], clean[30:])


def test_no_later_tile_changes_an_earlier_one():
    q, k, v = inputs(64, 64)
    pattern = Window(16) | COVER
    before = attention(q, k, v, pattern)
    changed = [torch.cat([x[:, :48], torch.randn_like(x[:, 48:])], 1) for x in (q, k, v)]
    assert torch.equal(attention(*changed, pattern)[:, :48], before[:, :48])


@pytest.mark.parametrize("limit", [None, 20], ids=["all", "within"])
@pytest.mark.parametrize("static", STATIC, ids=repr)
@pytest.mark.parametrize("shape", [(50, 50), (13, 45), (1, 30)], ids=str)
def test_pairs_are_counted_as_a_mask_would(shape, static, limit):
    n_queries, n_keys = shape
    q, k, _ = inputs(*shape)
    i, j = np.arange(n_keys - n_queries, n_keys)[:, None], np.arange(n_keys)
    for term in (COVER, SLASH):
        pattern = (static | term) if limit is None else (static | term).within(Window(limit))
        selected = select_blocks(q, k, pattern)
        kept = split_choice(pattern).static.mask(*shape)
        seen = (j <= i) & ((i - j < limit) if limit is not None else True)
        expected = [0] * 4
        for row in selected.tolist():
            for head in range(4):
                chosen = np.zeros(shape, dtype=bool)
                for t in range(n_queries):
                    tile = i[t, 0] // term.rows - i[0, 0] // term.rows
                    for block in row[tile][head]:
                        if block >= 0:
                            chosen[t, block * term.block : (block + 1) * term.block] = True
                expected[head] += int((kept | (chosen & seen)).sum())
        assert selected_pairs(selected, pattern, *shape).sum(0).tolist() == expected


def test_what_is_refused():
    q, k, v = inputs(20, 20)
    with pytest.raises(NotImplementedError, match="causal: use TopBlocks where causal=False"):
        attention(q, k, v, Window(16) | COVER, causal=False)
    with pytest.raises(NotImplementedError, match="later queries of its tile, which training must not read"):
        attention(q.requires_grad_(), k, v, Window(16) | COVER)
    with pytest.raises(ValueError, match=r"at most one CoverBlocks or TopBlocks term"):
        attention(q, k, v, COVER | TopBlocks(3))
    with pytest.raises(ValueError, match="score and compressed are for TopBlocks"):
        select_blocks(q, k, Window(16) | COVER, score="bounds")
    with pytest.raises(ValueError, match="must have a TopBlocks term"):
        selected_pairs(torch.zeros(1, 1, 1, 1), Window(3), 5, 5)
