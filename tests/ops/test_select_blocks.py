"""`select_blocks` against its definition, block by block; inputs are small whole numbers, so that scores and ties are exact."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_attn import Pattern, TopBlocks, Window, attention, parse, select_blocks
from sparse_attn.patterns.chosen import split_choice
from tests.patterns.strategies import packed, patterns, windows

# Static parts, and the interval that each has if it is not the same.
STATIC = {
    "window(9)": "window(9)",
    "window(5) | sinks(2) | random(1, block=4)": "window(5)",
    "chunked(12)": "chunked(12)",
    "full().within(window(10))": "window(10)",
    "dilated(4, 1)": "window(4)",
    "strided(5)": None,
}


def whole_numbers(*shape: int) -> Tensor:
    return torch.randint(-2, 3, shape).float()


def expected(
    q: Tensor, k: Tensor, pattern: Pattern, causal: bool, score: str = "mean", heads: int | None = None
) -> list[list[list[int]]]:
    """The blocks of one sequence, ``[N][H][<= K]``, by loops over the definition."""
    choice = split_choice(pattern)
    assert choice is not None
    term, (n_queries, hq, _), (n_keys, hkv, _) = choice.term, q.shape, k.shape
    heads = hkv if heads is None else heads
    static = repr(choice.static)
    interval = STATIC.get(static, static)  # of the static part, only intervals take blocks out of the running
    keep = torch.zeros(n_keys, n_keys, dtype=torch.bool)
    if choice.static is not None and interval is not None:
        keep = torch.from_numpy(parse(interval).mask(n_keys, causal=causal))
    cut = torch.ones(n_keys, n_keys, dtype=torch.bool)
    if choice.limit is not None:
        cut = torch.from_numpy(choice.limit.mask(n_keys, causal=False))
    blocks = [slice(start, start + term.block) for start in range(0, n_keys, term.block)]
    found = []
    first = n_keys - n_queries
    each = torch.stack([_query_scores(q[:, h], k[:, h * hkv // hq], blocks, score) for h in range(hq)], 1)
    each = each.unflatten(1, (heads, -1)).sum(2)  # [T, H, blocks]
    for tile in range(first // term.rows, (n_keys - 1) // term.rows + 1):
        rows = slice(tile * term.rows, (tile + 1) * term.rows)
        own = slice(max(rows.start - first, 0), rows.stop - first)
        totals = each[own].sum(0).nan_to_num(nan=-math.inf).tolist()
        allowed = [
            number
            for number, keys in enumerate(blocks)
            if (not causal or number < rows.start // term.block)
            and not keep[rows, keys].all()
            and cut[rows, keys].any()
        ]
        found.append([sorted(allowed, key=lambda b: (-row[b], b))[: term.k] for row in totals])
    return found


def _query_scores(q: Tensor, k: Tensor, blocks: list[slice], score: str) -> Tensor:
    """Each query's score of each block, ``[T, blocks]``, for one head."""
    q, parts = q.double(), [k[keys].double() for keys in blocks]
    if score == "mean":
        return torch.stack([q @ part.mean(0) for part in parts], 1)
    ends = [(part.min(0).values, part.max(0).values) for part in parts]
    return torch.stack([torch.maximum(q * low, q * high).sum(1) for low, high in ends], 1)


def as_lists(selected: Tensor) -> list[list[list[int]]]:
    return [[[b for b in row if b >= 0] for row in heads] for heads in selected.tolist()]


@settings(max_examples=30)
@given(st.data())
def test_the_best_candidates_are_chosen(data: st.DataObject) -> None:
    n_keys = data.draw(st.integers(1, 60), label="S")
    n_queries = data.draw(st.integers(1, n_keys), label="T")
    block, rows = data.draw(st.sampled_from([1, 4, 8, 64])), data.draw(st.sampled_from([1, 4, 6]))
    own: Pattern = TopBlocks(data.draw(st.integers(1, 5), label="k"), block, rows)
    if data.draw(st.booleans(), label="cut"):
        own = own.within(data.draw(windows))
    pattern = own | parse(data.draw(st.sampled_from(list(STATIC)))) if data.draw(st.booleans(), label="static") else own
    causal, score = data.draw(st.booleans(), label="causal"), data.draw(st.sampled_from(["mean", "bounds"]))
    q, k = whole_numbers(1, n_queries, 4, 4), whole_numbers(1, n_keys, 2, 4)
    k = k if n_keys % block == 0 or score == "bounds" else torch.ones_like(k)  # a mean over a short block is not exact
    for per_query_head in (False, True):
        got = select_blocks(q, k, pattern, causal=causal, score=score, per_query_head=per_query_head)
        heads = 4 if per_query_head else 2
        assert as_lists(got[0]) == expected(q[0], k[0], pattern, causal, score, heads)


@settings(max_examples=15)
@given(packed(), st.booleans())
def test_documents_choose_among_their_own_blocks(bounds: tuple[list[int], list[int]], causal: bool) -> None:
    q_bounds, k_bounds = bounds
    q, k = whole_numbers(q_bounds[-1], 2, 4), whole_numbers(k_bounds[-1], 1, 4)
    pattern = TopBlocks(3, 4, rows=3) | Window(5)
    if q_bounds[-1] == 0:
        return
    got = as_lists(
        select_blocks(q, k, pattern, causal=causal, cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds, score="bounds")
    )
    wanted = []
    for (q0, q1), (k0, k1) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True):
        if q1 > q0:
            wanted += expected(q[q0:q1], k[k0:k1], pattern, causal, "bounds")
    assert got == wanted


def test_equal_scores_take_the_lowest_blocks() -> None:
    q, k = torch.randn(1, 100, 2, 8), torch.ones(1, 100, 2, 8)
    chosen = select_blocks(q, k, TopBlocks(3, 8))
    assert chosen[0, 99].tolist() == [[0, 1, 2]] * 2
    assert chosen[0, 15].tolist() == [[0, -1, -1]] * 2  # block 0 alone is wholly before the query's own
    assert (chosen[0, :8] == -1).all()


def test_more_blocks_asked_for_than_there_are() -> None:
    q, k = torch.randn(1, 20, 2, 8), torch.randn(1, 20, 2, 8)
    assert select_blocks(q, k, TopBlocks(1000, 8)).shape == (1, 20, 2, 3)
    assert sorted(select_blocks(q, k, TopBlocks(1000, 8))[0, 19, 0].tolist()) == [-1, 0, 1]
    assert (
        select_blocks(q[:, :5], k[:, :5], TopBlocks(4, 8)) == -1
    ).all()  # shorter than a block: nothing wholly before


def test_a_nan_is_chosen_last_and_stays_in_its_document() -> None:
    q, k = whole_numbers(48, 2, 4), whole_numbers(48, 2, 4)
    options = {"pattern": TopBlocks(2, 4), "cu_seqlens_q": [0, 24, 48]}
    before = select_blocks(q, k, **options)
    spoilt = k.clone()
    spoilt[5] = torch.nan  # block 1 of the first document
    after = select_blocks(q, spoilt, **options)
    assert torch.equal(after[24:], before[24:])
    assert (after[12:24] != 1).all()  # two other blocks there are
    assert after[11, 0].tolist() == [0, 1]  # one other there is
    with_nan = q.clone()
    with_nan[:24] = torch.nan
    assert torch.equal(select_blocks(with_nan, k, **options)[24:], before[24:])


def test_compressed_keys_take_the_place_of_means() -> None:
    q, k = whole_numbers(2, 40, 4, 8), whole_numbers(2, 40, 2, 8)
    pattern = TopBlocks(2, 8) | Window(4)
    means = k.unflatten(1, (5, 8)).mean(2)
    assert torch.equal(select_blocks(q, k, pattern, compressed=means), select_blocks(q, k, pattern))
    flat = [x.flatten(0, 1) for x in (q, k, means)]
    by_document = select_blocks(*flat[:2], pattern, compressed=flat[2], cu_seqlens_q=[0, 40, 80])
    assert torch.equal(by_document, select_blocks(q, k, pattern).flatten(0, 1))


def test_a_negative_scale_turns_the_order_round() -> None:
    q, k = whole_numbers(1, 40, 2, 8), whole_numbers(1, 40, 2, 8)
    pattern = TopBlocks(2, 8)
    for score in ("mean", "bounds"):
        assert torch.equal(
            select_blocks(q, k, pattern, scale=-1.0, score=score), select_blocks(-q, k, pattern, score=score)
        )


def test_a_later_token_changes_no_earlier_choice() -> None:
    q, k = torch.randn(1, 90, 4, 8), torch.randn(1, 90, 2, 8)
    pattern = TopBlocks(3, 8) | Window(6)
    before = select_blocks(q, k, pattern)
    for t in (1, 40, 63, 64, 89):
        later = [torch.cat([x[:, :t], torch.randn_like(x[:, t:])], 1) for x in (q, k)]
        assert torch.equal(select_blocks(*later, pattern)[:, :t], before[:, :t])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    q, k = whole_numbers(1, 40, 4, 8), whole_numbers(1, 40, 2, 8)
    wide = select_blocks(q, k, TopBlocks(2, 8))
    assert torch.equal(select_blocks(q.to(dtype), k.to(dtype), TopBlocks(2, 8)), wide)


def test_attention_chooses_by_itself_as_the_op_does() -> None:
    q, k, v = torch.randn(2, 60, 4, 8), torch.randn(2, 60, 2, 8), torch.randn(2, 60, 2, 8)
    for pattern in (TopBlocks(2, 8, rows=16) | Window(4), TopBlocks(2, 8)):
        by_hand = attention(q, k, v, pattern, selected=select_blocks(q, k, pattern))
        assert torch.equal(attention(q, k, v, pattern), by_hand)


def test_wrong_arguments_are_named() -> None:
    q, k = torch.randn(1, 20, 4, 8), torch.randn(1, 20, 2, 8)
    with pytest.raises(ValueError, match=r"pattern has no TopBlocks term to select blocks for, got window\(4\)"):
        select_blocks(q, k, Window(4))
    with pytest.raises(ValueError, match="score must be 'mean' or 'bounds', got 'max'"):
        select_blocks(q, k, TopBlocks(2), score="max")
    with pytest.raises(ValueError, match=r"compressed must have shape \(1, 3, 2, 8\) .* got \(1, 2, 2, 8\) on cpu"):
        select_blocks(q, k, TopBlocks(2, 8), compressed=torch.randn(1, 2, 2, 8))
    with pytest.raises(NotImplementedError, match=r"topblocks\(2, rows=4\) chooses with later queries .* use rows=1"):
        attention(q.requires_grad_(), k, k, TopBlocks(2, rows=4))


def test_any_pattern_may_stand_beside_a_choice() -> None:
    @settings(max_examples=15)
    @given(patterns())
    def check(static: Pattern) -> None:
        q, k = torch.randn(1, 30, 2, 4), torch.randn(1, 50, 1, 4)
        chosen = select_blocks(q, k, static | TopBlocks(2, 8))
        assert (chosen < torch.arange(20, 50)[:, None, None] // 8).all()

    check()


def test_autocast_changes_no_choice() -> None:
    """Scores of narrow numbers would tie or turn round where float32 tells blocks apart."""
    q, k = torch.randn(1, 400, 2, 16), torch.randn(1, 400, 2, 16)
    pattern = parse("window(4) | topblocks(3, block=4)")
    expected_choice = select_blocks(q, k, pattern)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(select_blocks(q, k, pattern), expected_choice)
