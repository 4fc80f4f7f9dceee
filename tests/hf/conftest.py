"""Tiny models of the families that are supported, and what they should compute: eager attention under a 4D mask."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_attn import Full, Pattern
from sparse_attn.hf import restore

WINDOW = 7
N_LAYERS = 3
VOCABULARY = 61


def _sizes() -> dict:
    # A wide initialisation makes attention peaked: near uniform attention would hide a wrong mask.
    return {
        "num_hidden_layers": N_LAYERS, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
        "initializer_range": 0.4, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_sizes()))


def _mistral():
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_sizes(), sliding_window=WINDOW))


def _qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    return Qwen3ForCausalLM(Qwen3Config(**_sizes(), use_sliding_window=True, sliding_window=WINDOW, layer_types=kinds))


def _gemma3():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**_sizes(), sliding_window=WINDOW, layer_types=kinds, query_pre_attn_scalar=24)
    )


FAMILIES = {"llama": _llama, "mistral": _mistral, "qwen3": _qwen3, "gemma3": _gemma3}
# The model's own windows, as its published architecture has them: written out, not read from what is tested.
WINDOWS = {
    "llama": [None] * N_LAYERS,
    "mistral": [WINDOW] * N_LAYERS,
    "qwen3": [None, WINDOW, WINDOW],
    "gemma3": [WINDOW, WINDOW, None],
}


class Family:
    """A tiny random model of one family, and its oracle. Made once for all tests, which leave it as it was."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.windows = WINDOWS[name]
        torch.manual_seed(0)
        self.model = FAMILIES[name]().eval()
        self.eager = copy.deepcopy(self.model)
        self.eager.set_attn_implementation("eager")

    def fresh(self):
        """A copy that a test may keep and change."""
        return copy.deepcopy(self.model)

    def clean(self) -> None:
        restore(self.model)
        for model in (self.model, self.eager):
            model.eval().zero_grad()

    def expected(self, ids: Tensor, patterns: dict[int, Pattern] | Pattern, real: Tensor | None = None, **options):
        """The eager model's output, each layer under a 4D mask made from `Pattern.mask`, row by row.

        `real` marks tokens that are no padding; a row's are one document.
        """
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real.bool()
        per_layer = dict.fromkeys(range(N_LAYERS), patterns) if isinstance(patterns, Pattern) else patterns
        masks = [
            additive_mask(per_layer.get(n, Full()), self.windows[n], real, self.eager.dtype) for n in range(N_LAYERS)
        ]
        with under_masks(self.eager, masks):
            return self.eager(ids, position_ids=positions(real), use_cache=False, **options)


_family = functools.cache(Family)


def positions(real: Tensor) -> Tensor:
    """Position ids that count a row's real tokens, as `generate` makes them."""
    return (real.long().cumsum(1) - 1).clamp(min=0)


def additive_mask(pattern: Pattern, window: int | None, real: Tensor, dtype: torch.dtype) -> Tensor:
    B, T = real.shape
    keep = np.zeros((B, T, T), dtype=bool)
    for row, tokens in enumerate(real.numpy()):
        own = pattern.example(row)
        n = int(tokens.sum())
        mask = own.mask(n)
        if window is not None:
            i, j = np.ogrid[:n, :n]
            mask &= i - j < window
        keep[row][np.ix_(tokens, tokens)] = mask
        keep[row][~tokens, 0] = True  # padding must attend to something to stay finite
    return torch.zeros(B, 1, T, T, dtype=dtype).masked_fill(~torch.from_numpy(keep)[:, None], torch.finfo(dtype).min)


@contextmanager
def under_masks(model, masks: list[Tensor]):
    """Give each attention layer a mask of its own, whatever the model made."""
    handles = []
    for layer, mask in zip(model.model.layers, masks, strict=True):

        def swap(module, args, kwargs, mask=mask):
            return args, kwargs | {"attention_mask": mask}

        handles.append(layer.self_attn.register_forward_pre_hook(swap, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    yield _family(request.param)
    _family(request.param).clean()


@pytest.fixture
def ids() -> Tensor:
    """Two rows of 40 tokens: several of the models' own windows."""
    return torch.randint(2, VOCABULARY, (2, 40))


@pytest.fixture
def same() -> Callable[[str, Tensor, Tensor], None]:
    return assert_same


def assert_same(name: str, got: Tensor, expected: Tensor) -> None:
    """Equal up to float32 rounding through a few layers: 1e-4 of the largest value."""
    assert got.shape == expected.shape, f"{name}: {got.shape} != {expected.shape}"
    assert torch.isfinite(got).all(), f"{name} is not finite"
    error = (got - expected).abs().max() / expected.abs().max()
    assert error < 1e-4, f"{name} differs by {error:.2e} of the largest value"
