"""`model.generate` on a sparse model: the tokens that recomputing everything at each step would choose."""

import io
from contextlib import redirect_stdout

import pytest
import torch
from transformers import TextStreamer

from sparse_attn import Chunked, Random, Sinks, Strided, Window
from sparse_attn.hf import sparsify

PATTERN = {0: Window(5) | Sinks(2) | Strided(6), 1: Window(4) | Sinks(1), 2: Chunked(8) | Random(1, block=4)}
NEW = 8


def _recomputed(family, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Greedy tokens, each from the eager model over the whole sequence under the patterns' masks."""
    for _ in range(NEW):
        logits = family.expected(ids, PATTERN, real).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
    return ids


@pytest.mark.parametrize("cache", [None, "static"])
def test_greedy_tokens(family, ids, cache):
    model = sparsify(family.model, PATTERN, implementation="reference")
    real = torch.ones(2, 20, dtype=torch.bool)
    got = model.generate(
        ids[:, :20], max_new_tokens=NEW, do_sample=False, cache_implementation=cache, eos_token_id=None
    )
    with torch.no_grad():
        assert torch.equal(got, _recomputed(family, ids[:, :20], real))


def test_greedy_tokens_under_left_padding(family, ids):
    model = sparsify(family.model, PATTERN, implementation="reference")
    real = torch.ones(2, 20, dtype=torch.bool)
    real[0, :7] = False
    got = model.generate(
        ids[:, :20], attention_mask=real.long(), max_new_tokens=NEW, do_sample=False, eos_token_id=None
    )
    with torch.no_grad():
        assert torch.equal(got, _recomputed(family, ids[:, :20], real))
        alone = model.generate(ids[:1, 7:20], max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    assert torch.equal(got[:1, 20:], alone[:, 13:])


@pytest.mark.parametrize("family", ["llama", "gemma3"], indirect=True)
def test_beam_search(family, ids):
    model = sparsify(family.model, PATTERN, implementation="reference")
    real = torch.ones(2, 20, dtype=torch.long)
    real[1, :4] = 0
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    got = model.generate(ids[:, :20], attention_mask=real, **options)
    again = model.generate(ids[:, :20], attention_mask=real, use_cache=False, **options)
    assert torch.equal(got, again)


class _Letters:
    """Enough of a tokenizer for a streamer."""

    def decode(self, tokens, **_options):
        return "".join(chr(64 + int(token)) for token in tokens) + "\n"


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_streaming(family, ids):
    model = sparsify(family.model, PATTERN, implementation="reference")
    shown = io.StringIO()
    with redirect_stdout(shown):
        got = model.generate(
            ids[:1, :20], streamer=TextStreamer(_Letters(), skip_prompt=True), max_new_tokens=NEW, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    assert shown.getvalue().split() == [chr(64 + int(token)) for token in got[0, 20:]]
