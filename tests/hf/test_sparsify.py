"""`sparsify` on all families: what a model computes, what it leaves alone, and what `restore` puts back."""

import copy
import importlib
import sys

import pytest
import torch

import sparse_attn.hf
from sparse_attn import Chunked, Dilated, Full, Global, Random, Sinks, Strided, Window
from sparse_attn.hf import restore, sparsify

PATTERNS = {
    "window": Window(5),
    "window-wider-than-the-models": Window(20),
    "sinks": Window(5) | Sinks(3),
    "strided": Window(3) | Strided(6, offset=1) | Sinks(1),
    "chunked": Chunked(9) | Global((0, 17)),
    "dilated": Dilated(3, 4) | Window(2),
    "random": Window(4) | Random(1, seed=3, block=4),
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_prefill_is_eager_attention_under_the_patterns_mask(family, ids, pattern, same):
    model = sparsify(family.model, pattern, implementation="reference")
    with torch.no_grad():
        got = model(ids).logits
        expected = family.expected(ids, pattern).logits
        dense = restore(model)(ids).logits
    same("logits", got, expected)
    if pattern != Window(20):  # the test can tell the pattern from dense attention
        assert (dense - expected).abs().max() > 0.01 * dense.abs().max()


def test_full_equals_the_unmodified_model(family, ids, same):
    with torch.no_grad():
        expected = family.model(ids).logits
        model = sparsify(family.model, Full())
        same("logits", model(ids).logits, expected)
        same("logits of an empty mapping", sparsify(model, {})(ids).logits, expected)


def test_the_implementation_that_users_get_agrees(family, ids, same):
    pattern = {0: Window(5) | Sinks(2), 2: Strided(4) | Window(3)}
    with torch.no_grad():
        same("logits", sparsify(family.model, pattern)(ids).logits, family.expected(ids, pattern).logits)


def test_mapping_and_function_name_patterns_by_layer(family, ids, same):
    chosen = {0: Window(4), 2: Window(6) | Sinks(2)}
    with torch.no_grad():
        expected = family.expected(ids, chosen).logits
        model = sparsify(family.model, chosen, implementation="reference")
        same("logits of a mapping", model(ids).logits, expected)
        sparsify(model, Window(2), implementation="reference")  # replaced by the next call
        sparsify(model, chosen.get, implementation="reference")
        same("logits of a function", model(ids).logits, expected)


@pytest.mark.parametrize("family", ["mistral"], indirect=True)
def test_a_pattern_never_widens_the_models_own_window(family, ids, same):
    with torch.no_grad():
        dense = family.model(ids).logits
        for wider in (Full(), Window(30), Full() | Sinks(4)):
            same(repr(wider), sparsify(family.model, wider, implementation="reference")(ids).logits, dense)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_gradients(family, ids, checkpointing, same):
    pattern = Window(5) | Sinks(2)
    model = sparsify(family.model.train(), pattern)
    if checkpointing:
        model.activation_checkpointing_enable()
    model(ids, labels=ids, use_cache=False).loss.backward()
    model.activation_checkpointing_disable()

    family.expected(ids, pattern, labels=ids).loss.backward()
    for (name, got), expected in zip(model.named_parameters(), family.eager.parameters(), strict=True):
        same(f"gradient of {name}", got.grad, expected.grad)


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_autocast_trains(family, ids):
    model = sparsify(family.model.train(), Window(5) | Sinks(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    exact = family.expected(ids, Window(5) | Sinks(2), labels=ids).loss
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)


def test_restore_puts_everything_back(family, ids):
    model = family.fresh()
    model.set_attn_implementation("eager")
    before = [dict(vars(module)) for module in model.modules()]
    settings = model.config.to_dict()
    with torch.no_grad():
        expected = model(ids).logits
        assert restore(model) is model  # nothing to undo
        assert sparsify(model, Window(3), implementation="reference") is model
        sparsify(model, Window(4), implementation="reference")
        assert model.config._attn_implementation == "sparse_attn"
        assert not torch.equal(model(ids).logits, expected)
        for _ in range(2):
            assert restore(model) is model
            assert model.config._attn_implementation == "eager"
            assert torch.equal(model(ids).logits, expected)
    after = [vars(module) for module in model.modules()]
    assert [set(one) for one in before] == [set(one) for one in after]
    assert all(one.get("config") is two.get("config") for one, two in zip(before, after, strict=True))
    assert model.config.to_dict() == settings


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_settings_changed_while_sparse_stay_changed(family):
    model = sparsify(family.fresh(), Window(3))
    model.config.use_cache = False
    assert restore(model).config.use_cache is False


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_a_model_made_from_the_same_config_object_stays_dense(family, ids):
    from transformers import LlamaForCausalLM

    one = family.model
    other = LlamaForCausalLM(one.config).eval()
    assert other.config is one.config
    with torch.no_grad():
        before = other(ids).logits
        sparsify(one, Window(3), implementation="reference")
        assert torch.equal(other(ids).logits, before)


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_models_keep_their_own_patterns(family, ids):
    one = sparsify(family.model, Window(3), implementation="reference")
    twin = sparsify(copy.deepcopy(one), Window(9), implementation="reference")
    with torch.no_grad():
        first = one(ids).logits
        assert not torch.equal(first, twin(ids).logits)
        restore(twin)
        assert torch.equal(first, one(ids).logits)


@pytest.mark.parametrize("family", ["gemma3"], indirect=True)
def test_a_copy_is_sparse_too(family, ids):
    model = sparsify(family.model, Window(3), implementation="reference")
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
def test_saved_models_load_as_plain_ones(family, ids, tmp_path):
    from transformers import AutoModelForCausalLM

    sparsify(family.model, Window(3)).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, restore(family.model)(ids).logits, atol=1e-5)


def test_a_multimodal_models_text_decoder(same):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "intermediate_size": 32, "vocab_size": 40, "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=39)
    model = Gemma3ForConditionalGeneration(config).eval()
    ids = torch.randint(2, 30, (1, 12))
    with torch.no_grad():
        dense = model(ids).logits
        sparsify(model, Full(), implementation="reference")
        assert model.config.vision_config._attn_implementation == "sdpa"
        same("logits", model(ids).logits, dense)
        sparsify(model, Window(2), implementation="reference")
        assert not torch.equal(model(ids).logits, dense)
        assert torch.equal(restore(model)(ids).logits, dense)
        assert model.config is config


def test_importing_changes_nothing_in_transformers(monkeypatch):
    from transformers import AttentionInterface, AttentionMaskInterface

    monkeypatch.setattr(sparse_attn, "hf", sparse_attn.hf)  # importing anew sets it: put back afterwards
    for name in [name for name in sys.modules if name.startswith("sparse_attn.hf")]:
        monkeypatch.delitem(sys.modules, name)
    tables = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping
    for table in tables:
        monkeypatch.delitem(table, "sparse_attn", raising=False)
    before = [dict(table) for table in tables]
    importlib.import_module("sparse_attn.hf")
    assert [dict(table) for table in tables] == before
