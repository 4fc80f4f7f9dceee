"""The selector's lesson against sums by hand, what it teaches, and what it refuses."""

import copy

import pytest
import torch

from sparse_attn import parse
from sparse_attn.nn import SparseSelfAttention, rotate, selection_loss

PATTERN = parse("window(6) | topblocks(2, block=4)")


def test_loss_is_the_divergence_between_where_exact_and_coarse_attention_look() -> None:
    q = torch.randn(2, 30, 4, 8, dtype=torch.float64)
    k, compressed = (torch.randn(2, n, 2, 8, dtype=torch.float64) for n in (30, 8))
    at = torch.tensor([[3, 29], [17, 28]])
    found = []
    for example, positions in enumerate(at.tolist()):
        for t in positions:
            for head in range(4):
                scores = (k[example, : t + 1, head // 2] @ q[example, t, head] / 8**0.5).exp()
                # Whole blocks before the query's own, unless the window of 6 keys covers them.
                blocks = [b for b in range(t // 4) if b * 4 < t - 5]
                mass = torch.tensor([float(scores[b * 4 : b * 4 + 4].sum() / scores.sum()) for b in blocks])
                logits = torch.tensor([float(compressed[example, b, head // 2] @ q[example, t, head]) for b in blocks])
                miss = mass * (mass / mass.sum()).log() - mass * (logits / 8**0.5).log_softmax(0)
                found.append(float(miss.sum()))
    assert max(found) > 0.0
    loss = selection_loss(q, k, compressed, at, PATTERN)
    assert float(loss) == pytest.approx(sum(found) / len(found), abs=1e-6)


def test_sums_are_wide_inside_autocast_too() -> None:
    q, k, compressed = (torch.randn(1, n, 2, 8) for n in (20, 20, 5))
    at = torch.tensor([[10, 19]], dtype=torch.int32)
    plain = selection_loss(q, k, compressed, at, PATTERN)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(selection_loss(q, k, compressed, at, PATTERN), plain)


def test_nothing_is_missed_where_blocks_are_single_keys() -> None:
    q, k = (torch.randn(1, 20, 2, 8, dtype=torch.float64) for _ in range(2))
    loss = selection_loss(q, k, k, torch.tensor([[10, 19]]), parse("window(3) | topblocks(2, block=1)"))
    assert float(loss) == pytest.approx(0.0, abs=1e-12)


def test_a_layer_gives_the_lesson_of_its_turned_queries_and_keys() -> None:
    layer = SparseSelfAttention(32, 4, PATTERN, kv_heads=2).double()
    x, at = torch.randn(2, 30, 32, dtype=torch.float64), torch.tensor([[20, 29], [17, 28]])
    silent = layer(x)
    with pytest.raises(ValueError, match="nothing to take: set taught_at"):
        layer.selector.lesson()
    layer.selector.taught_at = at
    assert torch.equal(layer(x), silent)
    q, k, v = (p(x).view(2, 30, -1, 8) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    blocks = rotate(layer.selector.compress(k, v)[0], torch.arange(8) * 4 + 2, 10000.0)
    t = torch.arange(30)
    expected = selection_loss(rotate(q, t, 10000.0), rotate(k, t, 10000.0), blocks, at, PATTERN)
    copy.deepcopy(layer)
    torch.testing.assert_close(layer.selector.lesson(), expected)
    with pytest.raises(ValueError, match="nothing to take"):
        layer.selector.lesson()
    layer(x)
    layer.eval()(x)  # and what was not taken is forgotten
    with pytest.raises(ValueError, match="nothing to take"):
        layer.selector.lesson()


def test_pooling_learns_which_keys_are_looked_for() -> None:
    """Every query looks for the one marked key of some block: a mean hides it among others, learned pooling brings it out."""
    mark = torch.zeros(16)
    mark[0] = 4.0
    names = torch.randn(12, 16).index_fill(1, torch.tensor([0]), 0.0) * 4
    k = torch.randn(1, 100, 1, 16)
    k[..., 0] = 0.0
    k[0, 3:96:8, 0] = names + mark  # one in each of 12 blocks
    q = torch.zeros(1, 100, 1, 16)
    q[0, 88:100, 0] = names * 2
    at = torch.arange(88, 100)[None]
    layer = SparseSelfAttention(16, 1, parse("window(2) | topblocks(1, block=8)"), rope_theta=None)
    pooling, losses = layer.selector.pooling, []
    optimizer = torch.optim.Adam([pooling], 0.3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = selection_loss(q, k, layer.selector.compress(k, k)[0], at, layer.pattern)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_refusals() -> None:
    q = k = torch.randn(1, 20, 2, 8)
    at = torch.tensor([[19]])
    with pytest.raises(ValueError, match="pattern must have a TopBlocks term"):
        selection_loss(q, k, k, at, parse("window(3)"))
    with pytest.raises(ValueError, match="compressed their 5 blocks of 4, got 20 and 20"):
        selection_loss(q, k, k, at, PATTERN)
    compressed = torch.randn(1, 5, 2, 8)
    with pytest.raises(NotImplementedError, match="chooses with later queries of its tile: use rows=1"):
        selection_loss(q, k, compressed, at, parse("window(6) | topblocks(2, block=4, rows=4)"))
    for wrong in (at[0], at.float(), at[:, :0], at.expand(3, 1)):
        with pytest.raises(ValueError, match=r"at must hold positions \[1, Q\], int32 or int64"):
            selection_loss(q, k, compressed, wrong, PATTERN)
    for wrong in (at + 1, -at):
        with pytest.raises(ValueError, match="at must hold positions from 0 to 19"):
            selection_loss(q, k, compressed, wrong, PATTERN)
    layer = SparseSelfAttention(16, 2, PATTERN)
    layer.selector.taught_at = at
    with pytest.raises(NotImplementedError, match="not packed: set it to None"):
        layer(torch.randn(20, 16), cu_seqlens=[0, 8, 20])
