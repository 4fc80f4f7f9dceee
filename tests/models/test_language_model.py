"""Short convolutions against PyTorch's own, causality to the bit, and logits where they are asked for."""

import pytest
import torch
from torch import nn

from sparse_attn.models import GatedConvolution, LanguageModel, ShortConvolution
from sparse_attn.nn import SparseSelfAttention
from sparse_attn.patterns import Sinks, Window


@pytest.mark.parametrize(("tokens", "kernel"), [(9, 4), (2, 4), (1, 3), (5, 1)])
def test_convolution_is_the_causal_depthwise_one(tokens: int, kernel: int) -> None:
    ours = ShortConvolution(6, kernel).double()
    theirs = nn.Conv1d(6, 6, kernel, groups=6, padding=kernel - 1, bias=False).double()
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.flip(0).t()[:, None])  # conv1d counts its taps from the oldest token
    x = torch.randn(3, tokens, 6, dtype=torch.float64)
    expected = theirs(x.transpose(1, 2))[..., :tokens].transpose(1, 2)
    torch.testing.assert_close(ours(x), expected)


def test_gated_convolution_is_its_formula() -> None:
    mixer = GatedConvolution(4).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    nn.init.normal_(mixer.bias)
    expected = (mixer.convolution(x) + mixer.bias) * (x @ mixer.projection.weight.t() + mixer.projection.bias) + x
    torch.testing.assert_close(mixer(x), expected)


def model() -> LanguageModel:
    return LanguageModel(50, 16, [SparseSelfAttention(16, 2, Window(8) | Sinks(1)) for _ in range(2)], mlp=32)


def test_a_later_token_changes_nothing_before_it() -> None:
    net = model()
    tokens = torch.randint(50, (2, 40))
    changed = tokens.clone()
    changed[:, 25] = (changed[:, 25] + 1) % 50
    before, after = net.hidden(tokens), net.hidden(changed)
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25], after[:, 25])


def test_logits_at_positions_are_those_of_all() -> None:
    net = model()
    tokens = torch.randint(50, (2, 20))
    at = torch.tensor([[19, 3], [0, 7]])
    everywhere = net.hidden(tokens) @ net.embedding.weight.t()
    expected = torch.stack([everywhere[b, at[b]] for b in range(2)])
    torch.testing.assert_close(net(tokens, at), expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LanguageModel(10, 8, []), "mixers must name at least one block, got none"),
        (
            lambda: LanguageModel(10, 8, [nn.Identity()], kernel=[3, 3]),
            "kernel must be one number or 1, one a mixer, got 2",
        ),
        (lambda: ShortConvolution(4, 0), "width and kernel must be at least 1, got 4 and 0"),
    ],
)
def test_bad_sizes_are_named(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
