"""The low-rank view: figures derived by hand, and a model that reads."""

import io

import matplotlib.image
import pytest
import torch

from sparse_attn.analysis import attention_maps, low_rank_view
from sparse_attn.reports.low_rank_chart import draw_low_rank
from tests.tiny_model import tiny_model


def test_shares_by_hand() -> None:
    weights = torch.eye(6)
    weights[4] = torch.tensor([0.2, 0.1, 0.0, 0.3, 0.4, 0.0])  # of a window of 2, keys 0 and 1 lie outside: 0.3
    weights[5] = torch.tensor([0.1, 0.0, 0.0, 0.4, 0.0, 0.5])  # keys 0 and 3 lie outside: 0.5
    (head,) = low_rank_view(weights[None], window=2, sinks=1, ranks=[1, 2]).heads
    assert head.outside == pytest.approx(0.8 / 6)
    assert head.sinks == pytest.approx(0.3 / 6)
    assert head.inside == pytest.approx(5.2 / 6)
    # Behind the sink each row keeps one key, 0.1 and 0.4: two directions at right angles, and rank 1 takes the larger.
    assert head.energy_behind_sinks == pytest.approx((0.16 / 0.17, 1.0))
    assert head.mass_behind_sinks == pytest.approx((0.8, 1.0))
    assert head.mass[1] == pytest.approx(1.0)


def test_a_correction_of_rank_two_needs_two() -> None:
    n, window = 32, 4
    weights = torch.zeros(n, n, dtype=torch.float64)
    # The second half looks at two groups of keys in the first, in proportions that differ by query: rank 2 exactly.
    left = torch.rand(n // 2, 2, dtype=torch.float64)
    left = 0.5 * left / left.sum(1, keepdim=True)
    groups = torch.zeros(2, n, dtype=torch.float64)
    groups[0, 1:5], groups[1, 5:10] = 0.25, 0.2
    weights[n // 2 :] = left @ groups
    weights += torch.diag(1 - weights.sum(1))
    (head,) = low_rank_view(weights[None].float(), window=window, sinks=0, ranks=[1, 2, 3]).heads
    assert head.outside == pytest.approx(0.25)
    assert head.sinks == 0
    assert head.mass[0] < 0.99
    assert head.mass[1:] == pytest.approx((1.0, 1.0), abs=1e-6)
    assert head.energy[1:] == pytest.approx((1.0, 1.0), abs=1e-6)
    assert head.mass_behind_sinks == head.mass
    values = torch.linalg.eigvalsh(torch.tril(weights, -window) @ torch.tril(weights, -window).t())
    assert head.energy[0] == pytest.approx(float(values[-1] / values.sum()), abs=1e-6)


def test_a_window_that_sees_all_leaves_nothing() -> None:
    weights = torch.softmax(torch.randn(2, 9, 9).masked_fill(~torch.ones(9, 9).tril().bool(), float("-inf")), -1)
    for head in low_rank_view(weights, window=9, ranks=[1]).heads:
        assert head.outside == pytest.approx(0.0, abs=1e-7)
        assert head.mass == head.energy == (1.0,)


def test_maps_of_a_model_are_its_own_weights() -> None:
    model = tiny_model(layers=2)
    tokens = torch.randint(4, 200, (20,))
    maps = attention_maps(model, tokens, [0, 1])
    expected = model(input_ids=tokens[None], output_attentions=True).attentions
    assert model.config._attn_implementation == "eager"
    for layer in (0, 1):
        assert maps[layer].shape == (4, 20, 20)
        torch.testing.assert_close(maps[layer], expected[layer][0].detach())
    model.set_attn_implementation("sdpa")
    hooks = dict(model.get_decoder().layers[1].self_attn._forward_hooks)  # transformers has hooks of its own
    attention_maps(model, tokens, [1])
    assert model.config._attn_implementation == "sdpa"
    assert dict(model.get_decoder().layers[1].self_attn._forward_hooks) == hooks


def test_the_picture_shows_each_layer(tmp_path) -> None:
    maps = attention_maps(tiny_model(layers=2), torch.randint(4, 200, (48,)), [0, 1])
    views = {f"layer {n}": low_rank_view(x, window=8, ranks=[1, 4]).as_json() for n, x in maps.items()}
    path = draw_low_rank(views, tmp_path / "view.png", title="tiny")
    pixels = matplotlib.image.imread(io.BytesIO(path.read_bytes()))
    assert pixels.shape[1] > pixels.shape[0]
    assert pixels[..., :3].std() > 0.05


BAD = {
    "square": (
        lambda w, m: low_rank_view(w[:, :3], window=2),
        r"weights must have shape \[Hq, T, T\], got \(2, 3, 9\)",
    ),
    "window": (lambda w, m: low_rank_view(w, window=0), "window must be at least 1"),
    "ranks": (lambda w, m: low_rank_view(w, window=2, ranks=[4, 2]), r"rising order, got \[4, 2\]"),
    "layer": (lambda w, m: attention_maps(m, torch.tensor([5]), [2]), "layers must name layers 0 to 1, got 2"),
    "tokens": (lambda w, m: attention_maps(m, torch.tensor([], dtype=torch.long), [0]), "at least one token"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(torch.rand(2, 9, 9), tiny_model(layers=2))
