"""Padding, caches and packed documents: whatever the batch looks like, a row's tokens attend as they would alone."""

from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache, StaticCache

from sparse_attn import Chunked, Dilated, Full, Global, Random, Sinks, Strided, Window
from sparse_attn.hf import sparsify

# Every term, each with something that counts from the start of the document.
PATTERNS = {
    "full": Full(),
    "sinks": Window(5) | Sinks(3),
    "strided": Window(2) | Strided(6, offset=1),
    "strided-rows": Window(2) | Strided(4, offset=3, rows="strided"),
    "chunked": Chunked(9) | Sinks(1),
    "dilated": Dilated(3, 4) | Global((2, 30)),
    "random": Window(2) | Random(1, seed=3, block=4),
}
# One for each layer.
MIXED = {0: Window(5) | Sinks(3), 1: Random(1, block=4) | Chunked(9), 2: Strided(6) | Window(2) | Sinks(1)}
LAYOUTS = {
    "left": lambda n, real: [False] * (n - real) + [True] * real,
    "right": lambda n, real: [True] * real + [False] * (n - real),
}


@pytest.fixture(params=PATTERNS.values(), ids=PATTERNS)
def pattern(request):
    return request.param


def _padded(layout: str, n: int, *lengths: int) -> torch.Tensor:
    return torch.tensor([LAYOUTS[layout](n, length) for length in lengths])


def _positions(real):
    return (real.long().cumsum(1) - 1).clamp(min=0)


def _read_in_pieces(model, ids, cache, pieces, real=None):
    """Logits of a sequence that is read piece by piece into a cache."""
    done, logits = 0, []
    for size in pieces:
        new = slice(done, done + size)
        extra = {}
        if real is not None:
            extra = {"attention_mask": real[:, : new.stop].long(), "position_ids": _positions(real)[:, new]}
        logits.append(model(ids[:, new], past_key_values=cache, use_cache=True, **extra).logits)
        done += size
    assert done == ids.shape[1]
    return torch.cat(logits, 1)


def test_padding(family, ids, pattern, same):
    ids = torch.cat([ids, ids.flip(1)])
    real = torch.cat([_padded("left", 40, 40, 23), _padded("right", 40, 31, 1)])
    model = sparsify(family.model, pattern, implementation="reference")
    with torch.no_grad():
        got = model(ids, attention_mask=real.long(), position_ids=_positions(real)).logits
        same("logits", got[real], family.expected(ids, pattern, real).logits[real])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_under_padding(family, ids, layout, same):
    pattern, real = Window(5) | Sinks(2), _padded(layout, 40, 40, 23)
    predicted = real.clone()
    predicted[:, 1:] &= real[:, :-1]  # not a row's first token: padding, which no result is defined for, predicts it
    labels = ids.masked_fill(~predicted, -100)
    model = sparsify(family.model.train(), pattern, implementation="reference")
    model(
        ids, attention_mask=real.long(), position_ids=_positions(real), labels=labels, use_cache=False
    ).loss.backward()
    family.expected(ids, pattern, real, labels=labels).loss.backward()
    for (name, got), expected in zip(model.named_parameters(), family.eager.parameters(), strict=True):
        same(f"gradient of {name}", got.grad, expected.grad)


def test_a_row_attends_as_it_would_alone(family, ids, same):
    real = _padded("left", 40, 31, 40)
    model = sparsify(family.model, MIXED, implementation="reference")
    with torch.no_grad():
        batched = model(ids, attention_mask=real.long(), position_ids=_positions(real)).logits
        same("logits", batched[:1, 9:], model(ids[:1, 9:]).logits)


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_a_row_of_nothing_but_padding(family, ids, same):
    real = _padded("left", 40, 0, 40)
    model = sparsify(family.model, Window(5) | Sinks(1), implementation="reference")
    with torch.no_grad():
        got = model(ids, attention_mask=real.long()).logits
        same("logits", got[1:], model(ids[1:]).logits)
        assert torch.isfinite(got).all()
        assert torch.isfinite(model(ids, attention_mask=torch.zeros_like(ids)).logits).all()


CACHES = {
    "dynamic": lambda model: DynamicCache(config=model.config),  # sliding layers drop keys, as by default
    "keeps-all": lambda model: DynamicCache(),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=45),
}


def test_reading_in_pieces_equals_reading_at_once(family, ids, pattern, same):
    model = sparsify(family.model, pattern, implementation="reference")
    with torch.no_grad():
        got = _read_in_pieces(model, ids, CACHES["dynamic"](model), [13, 1, 18, 1, 7])
        same("logits", got, family.expected(ids, pattern).logits)


@pytest.mark.parametrize("family", ["llama", "gemma3"], indirect=True)
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_reading_token_by_token_equals_reading_at_once(family, ids, cache, same):
    ids = ids[:, :24]
    model = sparsify(family.model, MIXED, implementation="reference")
    with torch.no_grad():
        same("logits", _read_in_pieces(model, ids, cache(model), [1] * 24), family.expected(ids, MIXED).logits)


def test_the_implementation_that_users_get_agrees(family, ids, same):
    real = _padded("left", 40, 40, 27)
    model = sparsify(family.model, MIXED)
    with torch.no_grad():
        got = _read_in_pieces(model, ids, CACHES["dynamic"](model), [30, 1, 8, 1], real)
        same("logits", got[real], family.expected(ids, MIXED, real).logits[real])


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_caches_of_all_kinds_under_left_padding(family, ids, cache, same):
    real = _padded("left", 40, 27, 40)
    model = sparsify(family.model, MIXED, implementation="reference")
    with torch.no_grad():
        got = _read_in_pieces(model, ids, cache(model), [15, 1, 16, 1, 7], real)
        same("logits", got[real], family.expected(ids, MIXED, real).logits[real])


@pytest.mark.parametrize("family", ["mistral", "qwen3"], indirect=True)
def test_left_padding_in_pieces(family, ids, pattern, same):
    real = _padded("left", 40, 40, 27)
    model = sparsify(family.model, pattern, implementation="reference")
    with torch.no_grad():
        got = _read_in_pieces(model, ids, CACHES["dynamic"](model), [15, 1, 16, 1, 7], real)
        same("logits", got[real], family.expected(ids, pattern, real).logits[real])


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_padding_between_the_tokens_of_a_row(family, ids, pattern, same):
    """A right-padded prompt that goes on: positions count the real tokens, as `generate` counts them for RoPE."""
    real = torch.ones_like(ids, dtype=torch.bool)
    real[0, 12:20] = False
    model = sparsify(family.model, pattern, implementation="reference")
    with torch.no_grad():
        got = _read_in_pieces(model, ids, DynamicCache(), [20, 1, 19], real)
        same("logits", got[real], family.expected(ids, pattern, real).logits[real])


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
def test_one_list_of_global_positions_for_each_row(family, ids, same):
    pattern = Window(2) | Global(((0, 5), (11,)))
    model = sparsify(family.model, pattern, implementation="reference")
    real = _padded("left", 40, 40, 27)
    with torch.no_grad():
        same("logits", model(ids).logits, family.expected(ids, pattern).logits)
        got = model(ids, attention_mask=real.long(), position_ids=_positions(real)).logits
        same("logits", got[real], family.expected(ids, pattern, real).logits[real])


def test_packed_documents_by_position_ids(family, ids, same):
    """Rows that hold several documents each: transformers reads position_ids that restart as their boundaries."""
    bounds = [[0, 11, 12, 40], [0, 33, 40]]
    position_ids = torch.tensor([[t - max(b for b in row if b <= t) for t in range(40)] for row in bounds])
    model = sparsify(family.model, MIXED, implementation="reference")
    with torch.no_grad():
        got = model(ids, position_ids=position_ids, use_cache=False).logits
        for row, line in enumerate(bounds):
            for start, stop in pairwise(line):
                alone = model(ids[row : row + 1, start:stop], use_cache=False).logits
                same(f"document {row}, {start}:{stop}", got[row : row + 1, start:stop], alone)


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_packed_documents_pass_gradients(family, ids, same):
    position_ids = torch.cat([torch.arange(15), torch.arange(25)])[None].expand(2, -1)
    model, other = (sparsify(family.fresh().train(), Window(5) | Sinks(1)) for _ in range(2))
    model(ids, position_ids=position_ids, use_cache=False).logits.square().sum().backward()
    for piece in (ids[:, :15], ids[:, 15:]):
        other(piece, use_cache=False).logits.square().sum().backward()
    for (name, got), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        same(f"gradient of {name}", got.grad, expected.grad)
