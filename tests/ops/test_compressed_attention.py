"""Compressed attention against query-by-query loops: output, choice, gradients, documents, memory by runs."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_attn import TopBlocks, Window, attention, parse
from sparse_attn.ops import compressed_attention as op
from sparse_attn.ops import pool_blocks
from sparse_attn.reference import coarse_attention
from sparse_attn.testing import assert_within_budget


def inputs(
    T: int, S: int, block: int = 8, Hq: int = 4, Hkv: int = 2, B: int = 2, D: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    blocks = -(-S // block)
    return torch.randn(B, T, Hq, D), torch.randn(B, blocks, Hkv, D), torch.randn(B, blocks, Hkv, D)


def candidates(windows: list[int], T: int, S: int, block: int, rows: int = 1) -> list[list[list[int]]]:
    """Blocks wholly before the query's own, or its tile's, that no window of the KV heads holds whole."""
    found = []
    for i in range(S - T, S):
        first, last = (i // rows * rows, min(i // rows * rows + rows, S) - 1)
        found.append([[b for b in range(first // block) if b * block < last - window + 1] for window in windows])
    return found


@pytest.mark.parametrize(("T", "S", "rows"), [(50, 50, 1), (1, 50, 1), (33, 60, 1), (45, 60, 16), (5, 5, 1)])
@pytest.mark.parametrize("logits", [1, 1 << 23])
def test_output_and_choice(T: int, S: int, rows: int, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["sparse_attn.ops.compressed_attention"], "LOGITS", logits)
    patterns = [Window(window) | TopBlocks(2, 8, rows) for window in (12, 3)]
    q, k, v = inputs(T, S)
    out, selected = op(q, k, v, patterns, n_keys=S, scale=0.7)
    allowed = candidates([12, 3], T, S, 8, rows)
    for b in range(2):
        expected, weights = coarse_attention(q[b], k[b], v[b], allowed, scale=0.7)
        assert_within_budget("out", out[b], expected, expected.float())
        first = (S - T) // rows
        for tile in range(selected.shape[1]):
            own = [t for t in range(T) if (S - T + t) // rows == first + tile]
            for g in range(2):
                total = weights[own, g].sum(0)
                chosen = [n for n in selected[b, tile, g].tolist() if n >= 0]
                best = sorted((total[n].item() for n in allowed[own[0]][g]), reverse=True)[:2]
                assert len(set(chosen)) == len(best)
                assert set(chosen) <= set(allowed[own[0]][g])
                torch.testing.assert_close(total[chosen].tolist(), best, rtol=1e-5, atol=1e-6)


def test_gradients_reach_everything() -> None:
    pattern = Window(2) | TopBlocks(1, 3)
    leaves = [x.double().requires_grad_() for x in inputs(7, 9, block=3, Hq=2, Hkv=1, B=1, D=2)]
    assert torch.autograd.gradcheck(lambda q, k, v: op(q, k, v, pattern, n_keys=9)[0], leaves, fast_mode=True)


def test_documents_choose_their_own() -> None:
    pattern, bounds = Window(4) | TopBlocks(2, 8), [0, 30, 30, 41]
    q, k, v = torch.randn(41, 4, 8), torch.randn(41, 2, 8), torch.randn(41, 2, 8)
    whole = op(q, *pool_blocks(k, v, 8, cu_seqlens=bounds), pattern, cu_seqlens_q=bounds)
    for start, stop in ((0, 30), (30, 41)):
        own = (x[None, start:stop] for x in (k, v))
        alone = op(q[None, start:stop], *pool_blocks(*own, 8), pattern)
        torch.testing.assert_close(whole[0][start:stop], alone[0][0])
        width = alone[1].shape[-1]
        assert torch.equal(whole[1][start:stop, :, :width], alone[1][0])
    assert op(q[:0], k[:0], v[:0], pattern, cu_seqlens_q=[0, 0])[1].shape == (0, 2, 0)


def test_it_feeds_attention() -> None:
    pattern = parse("window(4) | topblocks(2, 8)")
    q, k, v = torch.randn(1, 40, 4, 8), torch.randn(1, 40, 2, 8), torch.randn(1, 40, 2, 8)
    _, selected = op(q, *pool_blocks(k, v, 8), pattern)
    assert attention(q, k, v, pattern, selected=selected).shape == q.shape


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no term": ({"pattern": Window(4)}, r"pattern must have a TopBlocks term, .* got window\(4\)"),
    "blocks": ({"n_keys": 30}, r"k must have one key for each of 4 blocks, .* got \(2, 3, 2, 8\)"),
    "v": ({"v": torch.randn(2, 4, 2, 8)}, r"v must have k's shape \(2, 3, 2, 8\), got \(2, 4, 2, 8\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name: str) -> None:
    changes, message = WRONG[name]
    q, k, v = inputs(20, 20)
    with pytest.raises(ValueError, match=message):
        op(**{"q": q, "k": k, "v": v, "pattern": TopBlocks(2, 8), **changes})


def test_tiles_of_later_queries_carry_no_gradient() -> None:
    q, k, v = inputs(20, 20)
    with pytest.raises(NotImplementedError, match=r"topblocks\(2, 8, 4\) chooses with later queries .* use rows=1"):
        op(q.requires_grad_(), k, v, TopBlocks(2, 8, 4))
