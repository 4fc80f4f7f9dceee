"""The review: every rule fires where it should, with the model's own numbers, and keeps quiet where it should not."""

import re
from pathlib import Path

import pytest

from sparse_attn.planner import SEVERITIES, describe, findings, read_config, sight

from .small_configs import SMALL

CONFIGS = Path(__file__).parent / "configs"
DECODER = {
    "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    "vocab_size": 100, "max_position_embeddings": 32768, "rope_theta": 1e9, "tie_word_embeddings": False, "head_dim": 16,
}  # fmt: skip
WINDOWS = {**DECODER, "model_type": "mistral", "sliding_window": 1024}
TOP = {
    **DECODER, "model_type": "qwen2", "num_hidden_layers": 48, "use_sliding_window": True, "max_window_layers": 28,
    "sliding_window": 4096,
}  # fmt: skip


def typed(*kinds, **more):
    names = {"F": "full_attention", "s": "sliding_attention"}
    types = [names[kind] for kind in "".join(kinds)]
    return {
        **DECODER, "model_type": "olmo3", "sliding_window": 512, "num_hidden_layers": len(types), "layer_types": types, **more,
    }  # fmt: skip


def real(name):
    return read_config(CONFIGS / f"{name}.json")


# rule: (config, asked context, severity, what the message says)
CASES = {
    "window-only": (
        real("Mistral-7B-v0.1"), None, "warning",
        "exact recall past 4,096 tokens goes through 8 hops, which bring 32,761 tokens to a query; all of 32,768 take 9. The "
        "stack's reach is 131,041 tokens (32 layers x (4,096 - 1) + 1)",
    ),
    "window-only ": (
        WINDOWS, None, "warning",
        "exact recall past 1,024 tokens goes from layer to layer, and 8 layers are too few for 32,768 tokens",
    ),
    "reach-below-context": (WINDOWS, None, "warning", "the reach of 8,185 tokens is 25.0% of the advertised context of 32,768"),
    "chunk-only": (
        {**DECODER, "model_type": "llama4_text", "no_rope_layers": [1] * 8, "attention_chunk_size": 2048, "num_local_experts": 2,
         "num_experts_per_tok": 1, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 1},
        None, "warning", "nothing crosses a chunk's border",
    ),
    "top-layers-local": (
        TOP, None, "warning",
        "the top 20 of 48 layers see only the last 4,096 tokens: distant facts cannot be combined there",
    ),
    "long-run-without-full": (
        typed("F", "s" * 10, "F"), None, "warning", "layers 1 to 10, 10 of 12 in a row, see only the last 512 tokens",
    ),
    "all-layers-full": (real("Llama-3.1-8B"), None, "info", "each of the 32 layers sees every earlier token"),
    "full-layers-regular": (
        real("Qwen3-Next-80B-A3B"), None, "info", "full attention at every fourth layer up to the top: 12 of 48 layers",
    ),
    "full-layers-some": (
        real("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"), None, "info",
        "6 of 29 layers see everything (21%), the lowest is layer 5, the highest layer 42 of 51",
    ),
    "recurrent-layers": (real("Jamba-v0.1"), None, "info", "28 of 32 layers carry the past in a state of 15.3 MiB"),
    "recurrent-only": (
        {"model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100, "num_heads": 8, "head_dim": 16,
         "state_size": 16, "n_groups": 1, "expand": 2, "conv_kernel": 4, "tie_word_embeddings": True},
        None, "warning", "no layer sees everything",
    ),
    "chunk-borders": (
        real("Llama-4-Scout-17B-16E-Instruct"), None, "info", "36 of 48 layers attend within chunks of 8,192 tokens",
    ),
    "chosen-keys": (real("DeepSeek-V3.2"), None, "info", "a query reads at most 2,048 keys, 1.2% of 163,840"),
    "distance-in-summaries": (
        SMALL["deepseek-v4-ratios"], None, "info",
        "2 of 5 layers see the distance as one summary for every 4 tokens, of which a query reads the best 3",
    ),
    "context-beyond-advertised": (
        real("Mistral-7B-v0.1"), 65536, "warning", "65,536 tokens are asked for, 2 times the advertised 32,768",
    ),
    "rope-scaled": (real("DeepSeek-V3"), None, "info", "163,840 tokens are 40 times the 4,096 before RoPE scaling by 40 (yarn)"),
    "rope-base-small": (
        {**DECODER, "model_type": "llama", "rope_theta": 10000}, None, "info", "RoPE's base of 10,000 is below the",
    ),
    "full-layers-without-rope": (real("SmolLM3-3B"), None, "info", "9 of the 36 layers that see everything have no RoPE"),
    "no-advertised-context": (
        {"model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100, "num_heads": 8, "head_dim": 16,
         "state_size": 16, "n_groups": 1, "expand": 2, "conv_kernel": 4, "tie_word_embeddings": True},
        None, "info", "the config names no longest context",
    ),
    "inert-field": (
        real("Qwen3-Coder-30B-A3B-Instruct"), None, "info",
        "max_window_layers: 28 is inert: Qwen3-MoE's class never reads it",
    ),
    "window-hides-nothing": (
        real("Phi-3-mini-128k-instruct"), None, "info",
        "32 layers have a window of 262,144 tokens, no less than the context of 131,072",
    ),
    "missing-fields": (real("SmolLM3-3B"), None, "info", "the config leaves out num_attention_heads (16)"),
    "missing-fields-doubtful": (real("Falcon-H1-0.5B"), None, "warning", "belong to a model of another size"),
    "encoder": (
        {**DECODER, "model_type": "longformer", "attention_window": [512] * 8, "type_vocab_size": 1}, None, "info",
        "8 layers see 513 tokens around a token",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "case"), CASES.items(), ids=CASES.keys())
def test_rule(rule, case):
    config, context, severity, words = case
    found = [one for one in findings(describe(config), context) if one.rule == rule.strip()]
    assert found, f"{rule} did not fire"
    assert found[0].severity == severity
    assert any(words in one.message for one in found), found


def test_assumed():
    model = describe({**DECODER, "model_type": "unheard_of"}, assume="full")
    (finding,) = [one for one in findings(model) if one.severity == "warning"]
    assert finding.rule == "assumed-full"
    assert "all 8 layers were taken for full attention" in finding.message


SOURCE = r"arXiv:\d{4}\.\d{5}|field |class|transformers|configuration_|modeling_|config\.json|max_position"


def test_weight_files_that_hold_another_model():
    config = {**DECODER, "model_type": "llama", "_stored_parameters": 5_000_000}
    assert [one.severity for one in findings(describe(config)) if one.rule == "weight-files-differ"] == ["warning"]
    beside = findings(describe({**config, "vision_config": {"hidden_size": 8}}))
    assert [one.severity for one in beside if one.rule == "weight-files-differ"] == ["info"]
    assert not [
        one for one in findings(describe({**DECODER, "model_type": "llama"})) if one.rule == "weight-files-differ"
    ]


QUIET = [
    "Llama-3.1-8B",
    "Qwen3-Next-80B-A3B",
    "Gemma-2-9B",
    "Gemma-3-1B-it",
    "gpt-oss-120b",
    "Qwen3-Coder-30B-A3B-Instruct",
]


@pytest.mark.parametrize("name", QUIET)
def test_no_warning_where_full_layers_reach_the_top(name):
    assert [one for one in findings(describe(real(name))) if one.severity == "warning"] == []


def test_a_window_that_the_context_fits_in_is_no_warning():
    assert [one.rule for one in findings(describe(WINDOWS), 1024) if one.severity == "warning"] == []
    assert "window-only" in [one.rule for one in findings(describe(WINDOWS), 1025)]


def test_the_regular_tail_of_a_pattern_is_no_warning():
    """The last full layer stands below the top by less than the pattern's own step."""
    found = findings(describe(typed("sssF" * 3, "sss")))
    assert [one.rule for one in found if one.severity == "warning"] == []
    assert any("every fourth layer up to layer 11, 3 below the top" in one.message for one in found)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_finding_of_every_config_has_an_id_a_severity_and_a_source(path):
    config = read_config(path)
    for one in findings(describe(config)):
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", one.rule)
        assert one.severity in SEVERITIES
        assert one.message[-1] not in ".!"
        assert "  " not in one.message
        assert re.search(
            r"arXiv:\d{4}\.\d{5}|field |class|transformers|configuration_|modeling_|config\.json|max_position",
            one.source,
        )


def test_warnings_come_first():
    found = [SEVERITIES.index(one.severity) for one in findings(describe(TOP))]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("context", [0, -1, 1.5, True])
def test_context_must_be_a_count(context):
    with pytest.raises(ValueError, match="context must be a whole number"):
        findings(describe(WINDOWS), context)


@pytest.mark.parametrize("name", SMALL)
def test_every_family_is_reviewed(name):
    """Somewhere a layer sees everything, or chooses, or the reach is bounded, or the model is none of these and says so."""
    model = describe(SMALL[name])
    seen, rules = sight(model), {one.rule for one in findings(model)}
    if not model.causal:
        assert "encoder" in rules
    elif seen.everything:
        assert rules & {"all-layers-full", "full-layers-regular", "full-layers-some"}
        assert seen.reach is None
    elif seen.chosen:
        assert rules & {"chosen-keys", "distance-in-summaries"}
    else:
        assert rules & {"window-only", "chunk-only", "recurrent-only"}
        assert seen.reach is not None
