"""Models that choose by coverage in prefill: dense where nothing may be left out, the choice elsewhere, and what it spent."""

import math

import pytest
import torch
from transformers import DynamicCache

from sparse_attn import CoverBlocks, Sinks, VerticalSlash, Window
from sparse_attn.evals.book import book_text, is_heading, paragraphs
from sparse_attn.hf import load_default, restore, sparsify, spent_pairs
from sparse_attn.hf.prefill import prefill

PATTERN = Window(4) | Sinks(1) | CoverBlocks(0.5, block=4, rows=4, stride=2)
WHOLE = Window(4) | Sinks(1) | CoverBlocks(1.0, block=4, rows=4, stride=2)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_coverage_1_is_the_model_as_it_came(family, ids, same):
    expected = family.model(ids).logits
    same("logits", sparsify(family.model, WHOLE)(ids).logits, expected)
    slash = Window(4) | VerticalSlash(1.0, block=4, rows=4)
    same("logits of stripes", sparsify(family.model, slash)(ids).logits, expected)
    spent = spent_pairs(family.model)
    for layer, window in enumerate(family.windows):
        pairs = 2 * sum(min(i + 1, window or 40) for i in range(40))
        assert (spent[layer].kept, spent[layer].dense, spent[layer].share) == ((pairs,) * 4, pairs, 1.0)


@pytest.mark.parametrize("family", ["llama", "gemma3"], indirect=True)
def test_a_choice_leaves_pairs_out_and_every_implementation_makes_the_same(family, ids, same):
    dense = family.model(ids).logits
    got = sparsify(family.model, PATTERN)(ids).logits
    spent = spent_pairs(family.model)
    same("logits", sparsify(family.model, PATTERN, implementation="reference")(ids).logits, got)
    assert (got - dense).abs().max() > 0.01 * dense.abs().max()
    for layer, window in enumerate(family.windows):
        local = 2 * sum(min(i + 1, 4) for i in range(40))
        assert all(local <= kept <= spent[layer].dense for kept in spent[layer].kept)
        assert (window is not None) or spent[layer].share < 0.9


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_decode_steps_and_short_prompts_are_dense(family, ids, same):
    dense, cache = family.model, DynamicCache()
    expected = dense(ids, past_key_values=cache, use_cache=True).logits
    step = ids[:, :1]
    after = dense(step, past_key_values=cache, use_cache=True).logits
    model = sparsify(family.model, PATTERN)
    cache.crop(-1)
    same("a decode step", model(step, past_key_values=cache, use_cache=True).logits, after)
    same("a short prompt", model(ids[:, :32]).logits, expected[:, :32])
    assert spent_pairs(model, reset=True)[0].share == 1.0
    assert spent_pairs(model)[0].dense == 0


@pytest.mark.parametrize("family", ["llama", "gemma3"], indirect=True)
def test_padding_packing_and_chunks_change_no_choice(family, ids, same):
    model = sparsify(family.model, PATTERN)
    alone = model(ids[:1]).logits
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.long), ids[:1]], 1)
    real = (torch.arange(47) >= 7).long()[None]
    both = torch.cat([padded, torch.cat([ids[1:], ids[1:, :7]], 1)])
    got = model(both, attention_mask=torch.cat([real, torch.ones(1, 47, dtype=torch.long)])).logits
    same("a padded row", got[:1, 7:], alone)
    positions = torch.cat([torch.arange(40), torch.arange(40)])[None]
    packed = model(ids.reshape(1, 80), position_ids=positions, use_cache=False).logits
    same("the first document", packed[:, :40], alone)
    same("the second document", packed[:, 40:], model(ids[1:]).logits)
    # Chunks that end where tiles do: the last one reads the same keys through the same choices.
    if family.windows[0] is None:
        family_cache = prefill(model, ids[0, :36].tolist(), chunk=36)
        last = model(ids[:1, 36:], past_key_values=family_cache, use_cache=True).logits
        same("the last chunk", last, alone[:, 36:])


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_auto_by_name(family, ids, same):
    expected = family.model(ids).logits
    model = sparsify(family.model, "auto", coverage=0.9)
    assert repr(model.model.layers[0].self_attn.sparse_attn.pattern) == "window(64) | sinks(64) | coverblocks(0.9)"
    same("a prompt of 40 tokens", model(ids).logits, expected)
    assert set(spent_pairs(model)) == {0, 1, 2}
    sparsify(model, {1: PATTERN})
    assert set(spent_pairs(model)) == {1}
    assert spent_pairs(restore(model)) == {}


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_what_is_refused(family, ids):
    model = family.model
    for coverage in (0, 1.5, -0.1, math.nan, "0.9", True):
        with pytest.raises(ValueError, match="coverage must be a share above 0 and at most 1, got"):
            sparsify(model, "auto", coverage=coverage)
    with pytest.raises(ValueError, match=r"coverage is for the pattern 'auto', got 0.9 with window\(8\)"):
        sparsify(model, Window(8), coverage=0.9)
    with pytest.raises(ValueError, match="'auto', got 'window"):
        sparsify(model, "window(8)")
    with torch.enable_grad(), pytest.raises(NotImplementedError, match="training must not read: run the model under"):
        sparsify(model, PATTERN)(ids)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "most_pairs"), [(4096, 0.40), (8128, 0.30)])
def test_the_real_model_keeps_its_perplexity(length, most_pairs):
    model, tokenizer = load_default()
    text = "\n\n".join(paragraph for paragraph in paragraphs(book_text()) if not is_heading(paragraph))
    ids = torch.tensor([tokenizer.encode(text[: 8 * length], add_special_tokens=False)[:length]])

    def surprise() -> float:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
        parts = zip(hidden.split(512), ids[0, 1:].split(512), strict=True)
        losses = [torch.nn.functional.cross_entropy(model.lm_head(h), t, reduction="sum") for h, t in parts]
        return float(sum(losses)) / (length - 1)

    dense = surprise()
    sparsify(model, "auto")
    assert math.exp(surprise() - dense) < 1.01
    spent = spent_pairs(model)
    assert sum(layer.share for layer in spent.values()) / len(spent) <= most_pairs


@pytest.mark.slow
def test_the_real_model_finds_its_needles_where_dense_does():
    from sparse_attn.evals.comparison import ANSWER_TOKENS, needle_prompts
    from sparse_attn.evals.needle import is_found
    from sparse_attn.hf.measure import HfReader
    from sparse_attn.patterns.covering import auto

    reader = HfReader(*load_default())
    text = [paragraph for paragraph in paragraphs(book_text()) if not is_heading(paragraph)]
    for prompt in needle_prompts(reader, text, [4096], [0.0, 0.25, 0.5, 0.75])[4096]:
        reader.attend([None] * reader.layers)
        dense = is_found(prompt.secret, reader.read(prompt.tokens, answer_tokens=ANSWER_TOKENS).answer)
        reader.attend([repr(auto())] * reader.layers)
        assert is_found(prompt.secret, reader.read(prompt.tokens, answer_tokens=ANSWER_TOKENS).answer) >= dense
