"""A model as a reader: what it reports is what the model computes."""

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from sparse_attn.evals.reader import Reader
from sparse_attn.hf import measure, sparsify, spent_pairs
from sparse_attn.hf.measure import HfReader
from sparse_attn.hf.prefill import prefill
from sparse_attn.patterns import Full, Sinks, Window, parse

from ..tiny_model import tiny_model, tiny_tokenizer

PROMPT = list(range(4, 104))


@pytest.fixture
def reader():
    return HfReader(tiny_model(), tiny_tokenizer())


@torch.inference_mode()
def surprise(model, tokens, positions):
    logits = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return -sum(float(logits[position - 1, tokens[position]]) for position in positions)


def greedy(model, tokens, most):
    ids = torch.tensor([tokens])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
    return tiny_tokenizer().decode(written[0, len(tokens) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("patterns", [[None] * 4, ["window(9) | sinks(2)"] * 4, [None, "window(9)", None, "window(1)"]])
def test_surprise_and_answer_are_the_models_own(reader, patterns):
    reader.attend(patterns)
    scored = [range(1, 40), range(60, 100)]
    reading = reader.read(PROMPT, scored=scored, answer_tokens=5)
    assert reading.scored_tokens == 79
    assert reading.surprise == pytest.approx(surprise(reader.model, PROMPT, [*scored[0], *scored[1]]), rel=1e-5)
    assert reading.answer == greedy(reader.model, PROMPT, 5)
    assert reading.prefill_seconds > 0


def test_surprise_in_more_than_one_chunk(reader, monkeypatch):
    whole = reader.read(PROMPT, scored=[range(1, 100)]).surprise
    monkeypatch.setattr(measure, "HEAD_CHUNK", 7)
    assert reader.read(PROMPT, scored=[range(1, 100)]).surprise == pytest.approx(whole, rel=1e-6)


def test_dense_again_after_a_pattern(reader):
    dense = reader.read(PROMPT, scored=[range(1, 100)])
    reader.attend(["window(2)"] * 4)
    sparse = reader.read(PROMPT, scored=[range(1, 100)])
    reader.attend([None] * 4)
    assert reader.read(PROMPT, scored=[range(1, 100)]).surprise == dense.surprise != sparse.surprise


def test_nothing_is_written_or_scored_unless_asked(reader):
    reading = reader.read(PROMPT, answer_tokens=0)
    assert (reading.answer, reading.surprise, reading.scored_tokens) == ("", 0.0, 0)


def test_an_answer_ends_at_the_end_token(reader):
    reader.model.generation_config.eos_token_id = list(range(260))
    assert HfReader(reader.model, reader.tokenizer).read(PROMPT).answer == ""


def test_cost_is_the_patterns_arithmetic(reader):
    cost = reader.cost(["window(9) | sinks(2)", None, "window(9)", None], 50)
    full = Full().pairs(50)
    assert cost.kept_pairs == (Window(9) | Sinks(2)).pairs(50) + Window(9).pairs(50) + 2 * full
    assert cost.dense_pairs == 4 * full
    assert cost.dense_cache_bytes == 4 * 50 * (2 * 2 * 8 * 4)
    assert cost.cache_bytes == (8 + 2 + 8 + 50 + 50) * (2 * 2 * 8 * 4)


def test_cost_of_a_choice_is_what_it_spent(reader):
    pattern = "window(4) | coverblocks(0.5, 4, 4, 2)"
    row = [pattern, None, pattern, None]
    full = Full().pairs(len(PROMPT))
    assert reader.cost(row, len(PROMPT)).kept_pairs == 4 * full  # the most that there can be
    reader.attend(row)
    assert reader.last_pairs is None
    reader.read(PROMPT)
    once = reader.last_pairs
    assert 2 * full + 2 * Window(4).pairs(len(PROMPT)) < once < 4 * full
    reader.read_many([PROMPT, PROMPT])
    assert reader.last_pairs == once
    reader.attend([None, "window(4)", None, None])
    reader.read(PROMPT)
    assert reader.last_pairs is None


def test_positions_for_each_batch_example_are_refused(reader):
    with pytest.raises(
        ValueError, match=r"lists Global positions for 2 batch examples, but prompts are read in batches"
    ):
        reader.attend(["global([[0], [1]])", None, None, None])


def test_what_is_spent_is_the_mean_over_the_prompts_read_and_leaves_the_models_counts(reader):
    row = ["window(4) | coverblocks(0.5, block=4, rows=4, stride=2)"] * 4
    prompts = [PROMPT, PROMPT[::-1], [7] * 50 + PROMPT[:50]]

    def spent(prompts: list[list[int]]) -> int:
        one = HfReader(tiny_model(), tiny_tokenizer())
        one.attend(row)
        one.read_many(prompts, answer_tokens=2)
        return one.last_pairs

    alone = [spent([prompt]) for prompt in prompts]
    assert len(set(alone)) == 3
    assert spent(prompts) == pytest.approx(sum(alone) / 3, abs=1)
    # What the model itself has counted goes on: two prompts and a decode step after each, all of them.
    reader.attend(row)
    reader.read(prompts[0], answer_tokens=2)
    first = spent_pairs(reader.model)[0]
    reader.read(prompts[0], answer_tokens=2)
    both = spent_pairs(reader.model)[0]
    assert both.dense == 2 * first.dense == 2 * sum(range(102))
    assert both.kept == tuple(2 * kept for kept in first.kept)


def test_a_refused_pattern_leaves_the_model_as_it_came(reader):
    dense = reader.read(PROMPT, scored=[range(1, 100)]).surprise
    with pytest.raises(NotImplementedError):
        reader.attend(["window(4) | anchors(2)"] * 4)
    assert reader.read(PROMPT, scored=[range(1, 100)]).surprise == dense


@pytest.mark.parametrize(
    "patterns", [[None] * 3, ["window(11) | sinks(2)"] * 3, [None, "window(3)", "sinks(2) | window(2)"]]
)
def test_a_models_own_windows_stay_in_force(family, patterns):
    """Against masks, cut by hand: a layer of the model's own window keeps no pair outside it, also where it is dense."""
    n = 40
    i, j = np.ogrid[:n, :n]
    pairs = 0
    for pattern, window in zip(patterns, family.windows, strict=True):
        mask = (Full() if pattern is None else parse(pattern)).mask(n)
        pairs += int((mask & (i - j < (window or n))).sum())
    cost = HfReader(family.model, tiny_tokenizer()).cost(patterns, n)
    assert (cost.kept_pairs, cost.dense_pairs) == (pairs, 3 * n * (n + 1) // 2)


def test_what_the_tokenizer_puts_first_begins_raw_prompts():
    tokenizer = tiny_tokenizer(template=None)
    assert HfReader(tiny_model(), tokenizer, raw=True).chat_frame() == ("", "\n\nAnswer:")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<user> $A <end>", special_tokens=[("<user>", 2), ("<end>", 1)]
    )
    reader = HfReader(tiny_model(), tokenizer, raw=True)
    assert reader.beginning() == [2]
    before, after = reader.chat_frame()
    assert (reader.encode(before), after) == ([2], "\n\nAnswer:")


def test_text_side(reader):
    assert reader.beginning() == []
    assert reader.tokenizer.decode(reader.encode("grüße")) == "grüße"
    assert reader.chat_frame() == ("<user>", "<end><model>")
    assert (reader.layers, reader.context) == (4, 1024)
    with pytest.raises(ValueError, match="no chat template"):
        HfReader(tiny_model(), tiny_tokenizer(template=None)).chat_frame()


@pytest.mark.parametrize(
    ("tokens", "scored", "message"),
    [
        ([], (), "at least one token"),
        ([5] * 1020, (), "1,020 tokens and an answer of 16 exceed the model's context of 1,024"),
        ([5] * 9, [range(0, 3)], "positions 1 to 8"),
        ([5] * 9, [range(3, 10)], "positions 1 to 8"),
    ],
)
def test_what_cannot_be_read_is_refused(reader, tokens, scored, message):
    with pytest.raises(ValueError, match=message):
        reader.read(tokens, scored=scored)


def test_logits_that_are_changed_after_the_head_are_refused(reader):
    def soften(module, args, output):
        output.logits = output.logits / 3

    reader.model.register_forward_hook(soften)
    assert reader.read(PROMPT).scored_tokens == 0
    with pytest.raises(NotImplementedError, match="changes its logits"):
        reader.read(PROMPT, scored=[range(1, 9)])


def test_a_reader_is_what_evaluations_expect(reader):
    expected: Reader = reader
    assert expected.layers == 4


@pytest.mark.parametrize("pattern", [None, Window(9) | Sinks(2)])
@pytest.mark.parametrize("chunk", [13, 100, 512])
def test_reading_in_chunks_fills_the_same_cache(reader, pattern, chunk):
    model = reader.model if pattern is None else sparsify(reader.model, pattern)
    told = []
    cache = prefill(model, PROMPT, chunk=chunk, on_tokens=told.append)
    whole = prefill(model, PROMPT)
    assert told[-1] == cache.get_seq_length() == 100
    for some, all_of_it in zip(cache.layers, whole.layers, strict=True):
        torch.testing.assert_close(some.keys, all_of_it.keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(some.values, all_of_it.values, rtol=1e-4, atol=1e-5)


def test_chunks_have_a_token(reader):
    assert prefill(reader.model, []).get_seq_length() == 0
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        prefill(reader.model, PROMPT, chunk=0)


def test_parts_are_scored_apart(reader):
    parts = [range(1, 40), range(40, 41), range(60, 100)]
    reading = reader.read(PROMPT, scored=parts)
    apart = [reader.read(PROMPT, scored=[part]).surprise for part in parts]
    assert reading.surprise_by_part == pytest.approx(apart, rel=1e-6)
    assert reading.surprise == pytest.approx(sum(apart), rel=1e-6)


@pytest.mark.parametrize("pattern", [None, "window(9) | sinks(2)"])
def test_many_prompts_are_answered_as_each_alone(reader, pattern):
    reader.attend([pattern] * 4)
    prompts = [PROMPT, PROMPT[::-1], PROMPT[50:] + PROMPT[:50]]
    together = reader.read_many(prompts, answer_tokens=6)
    assert together == [reader.read(prompt, answer_tokens=6).answer for prompt in prompts]
    assert len(set(together)) == 3


def test_an_answer_that_ends_early_does_not_end_its_neighbours(reader):
    prompts = [PROMPT, PROMPT[::-1]]
    alone = [reader.read(prompt, answer_tokens=6).answer for prompt in prompts]
    first = reader.encode(alone[0])[0]
    if first not in reader.encode(alone[1]):
        reader.model.generation_config.eos_token_id = [first]
        assert HfReader(reader.model, reader.tokenizer).read_many(prompts, answer_tokens=6) == ["", alone[1]]


def test_prompts_of_different_lengths_are_refused(reader):
    with pytest.raises(ValueError, match=r"prompts must be of one length, got \[99, 100\]"):
        reader.read_many([PROMPT, PROMPT[1:]])
