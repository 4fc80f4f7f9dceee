"""What a config means: the traps, the defaults that are taken, and one sentence for what makes no sense."""

import json
from pathlib import Path

import pytest

from sparse_attn.planner import describe
from sparse_attn.planner.fields import class_defaults

from .small_configs import SMALL

LLAMA, QWEN2, QWEN3_MOE = SMALL["llama"], SMALL["qwen2"], SMALL["qwen3-moe"]


def kinds(config):
    return [layer.kind for layer in describe(config).layers]


def test_window_rules_of_the_three_qwens():
    on = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3}
    assert kinds({**QWEN2, **on}) == ["full"] * 3 + ["sliding"] * 2
    assert kinds({**SMALL["qwen2-moe"], **on}) == ["sliding", "full", "sliding", "full", "full"]
    assert kinds({**QWEN3_MOE, **on}) == ["sliding"] * 5
    assert kinds({**QWEN2, **on, "use_sliding_window": False}) == ["full"] * 5


def test_inert_fields_are_told():
    found = describe({**QWEN3_MOE, "max_window_layers": 2, "use_sliding_window": False})
    (inert,) = found.inert
    assert (inert.field, inert.value) == ("max_window_layers", "2")
    assert "never reads" in inert.reason
    off = describe({**QWEN2, "use_sliding_window": False, "sliding_window": 6})
    assert {one.field for one in off.inert} == {"max_window_layers", "sliding_window"}
    late = describe({**QWEN2, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 5})
    assert "no layer slides" in late.inert[0].reason
    assert {one.field for one in describe({**SMALL["deepseek-v3"], "head_dim": 64}).inert} == {
        "head_dim",
        "num_key_value_heads",
    }
    assert [one.field for one in describe({**LLAMA, "sliding_window": 7}).inert] == ["sliding_window"]
    wide = describe({**SMALL["phi3"], "sliding_window": 256})
    assert "cuts nothing" in wide.inert[0].reason
    assert describe({**SMALL["phi3"], "sliding_window": 255}).inert == ()


def test_gemma_without_layer_types():
    assert kinds(SMALL["gemma2"]) == ["sliding", "full", "sliding", "full", "sliding"]
    assert kinds(SMALL["gemma3"]) == ["sliding"] * 5 + ["full"] + ["sliding"] * 2
    given = {**SMALL["gemma3"], "layer_types": ["full_attention"] + ["sliding_attention"] * 7}
    assert kinds(given) == ["full"] + ["sliding"] * 7
    assert describe(given).layers[0].source == "layer_types[0]"


def test_kimi_linear_counts_from_one():
    assert kinds(SMALL["kimi-linear"]) == ["linear", "latent", "linear", "linear", "latent"]
    assert {layer.rope for layer in describe(SMALL["kimi-linear"]).layers} == {"none"}


def test_a_latent_is_what_mla_keeps():
    layer = describe({**SMALL["deepseek-v3"], "head_dim": 999}).layers[0]
    assert (layer.kv_heads, layer.head_dim, layer.value_dim) == (1, 8 + 4, 12)
    assert [(one.name, one.elements) for one in layer.memory] == [("latent", 16 + 4)]


def test_nested_and_flat_configs_agree():
    inner = SMALL["qwen3.5-moe"]
    nested = {
        "model_type": "qwen3_5_moe",
        "text_config": inner,
        "tie_word_embeddings": True,
        "vision_config": {"depth": 3},
    }
    assert describe(nested).layers == describe(inner).layers
    assert describe(nested).model_type == "qwen3_5_moe"
    assert describe(nested).parameters.total == describe(inner).parameters.total - 97 * 48  # the head is the embedding
    both = {**nested, "hidden_size": 9, "num_hidden_layers": 1}  # as some libraries write it: the inner one is meant
    assert describe(both).layers == describe(inner).layers
    unnamed = {"model_type": "llama4", "text_config": {k: v for k, v in SMALL["llama4"].items() if k != "model_type"}}
    assert describe(unnamed).layers == describe(SMALL["llama4"]).layers


def test_keys_with_an_underscore_change_nothing():
    assert describe({**LLAMA, "_notes": {"hidden_size": 1}, "_source": 3}) == describe(LLAMA)


def test_null_is_not_a_default():
    assert set(kinds(SMALL["mistral-default"])) == {"sliding"}
    assert describe(SMALL["mistral-default"]).layers[0].window == 4096
    assert set(kinds(SMALL["mistral-null"])) == {"full"}


def test_an_empty_list_of_layers_without_rope_is_the_default():
    given = {**SMALL["llama4"], "no_rope_layers": []}
    assert kinds(given) == ["chunked", "chunked", "chunked", "full", "chunked"]


def test_rope_and_context():
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    found = describe({**LLAMA, "rope_scaling": scaled, "rope_theta": 1e6})
    assert (found.rope.kind, found.rope.factor, found.rope.theta) == ("yarn", 4.0, 1e6)
    assert (found.advertised_context, found.trained_context) == (256, 64)
    local = describe(SMALL["gemma3"] | {"rope_theta": 1e6, "rope_local_base_freq": 1e4})
    assert [layer.rope_theta for layer in local.layers[4:6]] == [1e4, 1e6]
    assert describe(SMALL["jamba"]).rope.kind == "none"
    assert [layer.rope for layer in describe(SMALL["cohere2"]).layers] == ["rope"] * 3 + ["none", "rope"]


def test_what_is_missing_and_taken_from_the_class_is_told():
    named = {one.field for one in describe({k: v for k, v in LLAMA.items() if k != "vocab_size"}).assumed}
    assert "vocab_size" in named
    own = json.loads((Path(__file__).parent / "configs" / "SmolLM3-3B.json").read_text("utf-8"))
    assert not any(one.doubtful for one in describe(own).assumed)
    assert any(one.doubtful for one in describe(without("intermediate_size")).assumed)


def test_missing_heads_are_doubtful_in_a_hybrid_and_an_error_elsewhere():
    excerpt = json.loads((Path(__file__).parent / "configs" / "Granite-4.0-H-1B.json").read_text("utf-8"))
    found = describe(excerpt)
    assert [layer.index for layer in found.layers if layer.kind == "full"] == [5, 15, 25, 35]
    assert {one.field for one in found.assumed if one.doubtful} >= {"num_attention_heads", "shared_intermediate_size"}
    with pytest.raises(ValueError, match="num_attention_heads is missing"):
        describe(without("num_attention_heads"))


def without(*names, base=LLAMA):
    return {key: value for key, value in base.items() if key not in names}


BAD = {
    "no model_type": (without("model_type"), "has no model_type"),
    "unknown model_type": (
        {**LLAMA, "model_type": "newformer", "sliding_window": 8},
        r"num_key_value_heads \(given\), layer_types,",
    ),
    "nearly known": ({**LLAMA, "model_type": "llamma"}, "near: llama"),
    "model_type a number": ({**LLAMA, "model_type": 3}, "model_type must be a text"),
    "not an object": ([1], "must be a JSON object, got list"),
    "no layers": (without("num_hidden_layers"), "num_hidden_layers is missing"),
    "no width": (without("hidden_size"), "hidden_size is missing"),
    "no heads": (without("num_attention_heads"), "num_attention_heads is missing"),
    "negative layers": (
        {**LLAMA, "num_hidden_layers": -3},
        "num_hidden_layers must be a positive whole number, got -3",
    ),
    "zero heads": ({**LLAMA, "num_key_value_heads": 0}, "num_key_value_heads must be a positive whole number, got 0"),
    "endless layers": ({**LLAMA, "num_hidden_layers": 10**9}, "num_hidden_layers must be at most 4,096"),
    "half a layer": ({**LLAMA, "num_hidden_layers": 2.5}, "got 2.5"),
    "a layer in words": ({**LLAMA, "num_hidden_layers": "two"}, "got 'two'"),
    "true layers": ({**LLAMA, "num_hidden_layers": True}, "got True"),
    "heads that do not divide": ({**LLAMA, "num_key_value_heads": 4}, "6 is not a multiple of num_key_value_heads 4"),
    "width that does not divide": ({**LLAMA, "hidden_size": 50}, "50 is not a multiple of num_attention_heads 6"),
    "negative window": ({**SMALL["mistral-window"], "sliding_window": -1}, "sliding_window must be a positive"),
    "layer types too short": ({**QWEN2, "layer_types": ["full_attention"]}, "layer_types has 1 entries"),
    "layer types unknown": ({**QWEN2, "layer_types": ["odd"] * 5}, r"layer_types\[0\] is 'odd', expected one of"),
    "layer types no list": ({**QWEN2, "layer_types": "full"}, "layer_types must be a list"),
    "sliding without a window": (
        {**QWEN2, "use_sliding_window": False, "layer_types": ["sliding_attention"] * 5},
        "but sliding_window is missing",
    ),
    "pattern against layers": ({**SMALL["nemotron-h"], "num_hidden_layers": 6}, "num_hidden_layers is 6"),
    "pattern with an unknown letter": ({**SMALL["nemotron-h"], "hybrid_override_pattern": "M*XM-ME"}, "has 'X'"),
    "offset beyond its period": ({**SMALL["jamba"], "attn_layer_offset": 3}, "attn_layer_offset 3 must be below"),
    "more chosen than there": ({**SMALL["mixtral"], "num_experts_per_tok": 9}, "9 is more than the 4 experts"),
    "kimi names a layer twice": (
        {**SMALL["kimi-linear"], "linear_attn_config": {"full_attn_layers": [1, 1], "kda_layers": [2, 3, 4, 5]}},
        "named twice",
    ),
    "kimi forgets a layer": (
        {**SMALL["kimi-linear"], "linear_attn_config": {"full_attn_layers": [1], "kda_layers": [2, 3, 4]}},
        r"neither kind for layer 5 \(from 1\)",
    ),
    "kimi counts from zero": (
        {**SMALL["kimi-linear"], "linear_attn_config": {"full_attn_layers": [0], "kda_layers": [1, 2, 3, 4]}},
        "must be a positive whole number, got 0",
    ),
    "mamba heads that do not fit": ({**SMALL["bamba"], "mamba_n_heads": 7}, "is not mamba_expand x hidden_size"),
    "rope no object": ({**LLAMA, "rope_scaling": 3}, "rope_scaling must be an object"),
    "text_config no object": ({"model_type": "gemma3", "text_config": 3}, "text_config must be an object"),
    "switch in words": ({**QWEN2, "use_sliding_window": "yes"}, "use_sliding_window must be true or false"),
    "a context of less than nothing": ({**LLAMA, "max_position_embeddings": -5}, "max_position_embeddings must be"),
    "an infinite factor": ({**LLAMA, "rope_scaling": {"factor": float("inf")}}, "must be a finite number"),
}


@pytest.mark.parametrize(("config", "sentence"), BAD.values(), ids=BAD)
def test_one_sentence(config, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        describe(config)
    assert "\n" not in str(raised.value)


ODD = (None, "x", -1, 0, 3, 2.5, 10**18, [None], ["full_attention"], {"a": 1})


@pytest.mark.parametrize("name", SMALL)
def test_whatever_a_field_holds_the_answer_is_a_model_or_a_sentence(name):
    for field in SMALL[name]:
        for value in ODD:
            said = ""
            try:
                found = describe({**SMALL[name], field: value})
                assert found.parameters.total > 0
            except ValueError as error:
                said = str(error)
            assert "\n" not in said, (field, value)


def test_an_unknown_model_can_be_assumed_full():
    found = describe({**LLAMA, "model_type": "newformer"}, assume="full")
    assert {layer.kind for layer in found.layers} == {"full"}
    assert found.layers[0].source == "assumed"
    assert "assumed" in found.notes[0]
    with pytest.raises(ValueError, match="assume must be 'full' or None"):
        describe(LLAMA, assume="sliding")


def test_class_defaults_are_those_of_the_installed_library():
    from scripts.planner_defaults import build

    assert dict(class_defaults()) == build()["classes"]
