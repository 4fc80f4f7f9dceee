"""The published configs: shrunk and run, their layers and caches are transformers' own; in full, their parameters are."""

import json
from pathlib import Path

import pytest
import torch

from sparse_attn.planner import describe, kv_cost

from . import real_cache
from .shrink import shrink

CONFIGS = {
    path.stem: json.loads(path.read_text("utf-8")) for path in sorted(Path(__file__).parent.glob("configs/*.json"))
}
COUNTED = {name: config["_computed"] for name, config in CONFIGS.items() if "_computed" in config}
# What another one shows already, or what takes a second.
SLOW = (
    "DeepSeek-V3",
    "DeepSeek-V3.2",
    "Falcon-H1-0.5B",
    "Falcon-H1-1.5B",
    "Falcon-H1-3B",
    "Falcon-H1-7B",
    "Granite-4.0-H-1B",
    "Granite-4.0-H-micro-derived",
    "Kimi-K2-Instruct",
    "Llama-3.1-70B",
    "Mistral-7B-Instruct-v0.2",
    "Qwen3-32B",
    "Qwen3-Coder-30B-A3B-Instruct",
    "Qwen3-Next-80B-A3B",
    "Qwen3.5-122B-A10B",
)
NAMES_OF_TRANSFORMERS = {"kimi_k2": "deepseek_v3"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def text_of(config):
    inner = config.get("text_config", config)
    return real_cache.config_of(inner, NAMES_OF_TRANSFORMERS.get(inner["model_type"], inner["model_type"]))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CONFIGS]
)
def test_shrunk_and_run(name):
    small = shrink(CONFIGS[name])
    config, described = text_of(small), describe(small)
    types = real_cache.layer_types(config)
    assert [layer.kind in real_cache.KIND_OF[kind] for layer, kind in zip(described.layers, types, strict=True)] == [
        True
    ] * len(types)
    model = real_cache.build(config, "cpu").to(torch.bfloat16).eval()
    for tokens in (5, 21):
        cost = kv_cost(described, tokens, accounting="transformers")
        assert cost.total_bytes == real_cache.cache_bytes(model, tokens, described.vocab_size)


@pytest.mark.parametrize("name", COUNTED)
def test_counted_parameters(name):
    assert describe(CONFIGS[name]).parameters.total == COUNTED[name]["text_params_transformers_5.23_meta"]


# Falcon-H1's excerpts lack mamba_d_ssm, and transformers refuses its own default beside their heads.
WHOLE = [name for name in CONFIGS if not name.startswith("Falcon")]


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_parameters_on_the_meta_device(name):
    assert describe(CONFIGS[name]).parameters.total == real_cache.parameters(text_of(CONFIGS[name]))
