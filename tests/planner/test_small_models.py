"""Every family's rule against transformers itself, on models small enough to run: layers, parameters, bytes of the cache."""

import pytest
import torch

from sparse_attn.planner import describe, kv_cost

from . import real_cache
from .small_configs import SMALL

ENCODERS = ("longformer", "longformer-masked", "big-bird", "big-bird-masked")
CAUSAL = [name for name in SMALL if name not in ENCODERS]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", SMALL)
def test_layers_are_those_of_transformers(name):
    model = describe(SMALL[name])
    config = real_cache.config_of(SMALL[name])
    if name in ("rwkv", *ENCODERS):
        pytest.skip("transformers names no layer types for this family")
    types = real_cache.layer_types(config)
    assert len(types) == len(model.layers)
    for layer, kind in zip(model.layers, types, strict=True):
        if kind == "dummy" and layer.shares_with is not None:
            assert model.layers[layer.shares_with].kind == layer.kind  # it reads that layer's keys, and keeps none
            continue
        assert layer.kind in real_cache.KIND_OF[kind]
        if layer.kind == "sliding":
            assert layer.window == config.sliding_window
        if layer.kind == "chunked":
            assert layer.window == config.attention_chunk_size


@pytest.mark.parametrize("name", SMALL)
def test_parameters_are_those_of_the_model(name):
    parameters = describe(SMALL[name]).parameters
    assert parameters.total == real_cache.parameters(real_cache.config_of(SMALL[name]))
    assert sum(parameters.parts.values()) == parameters.total
    assert parameters.active <= parameters.total


@pytest.mark.parametrize("name", CAUSAL)
def test_cache_bytes_are_those_of_real_tensors(name):
    config = real_cache.config_of(SMALL[name])
    model = real_cache.build(config, "cpu").to(torch.bfloat16).eval()
    described = describe(SMALL[name])
    for tokens in (5, 21):  # below and above every window
        cost = kv_cost(described, tokens, accounting="transformers")
        expected = real_cache.cache_bytes(model, tokens, described.vocab_size)
        if name == "recurrent-gemma":  # its attention layers' cache is not handed out
            expected += sum(item.bytes for item in cost.items if item.name in ("keys", "values"))
        assert cost.total_bytes == expected


SWITCHES = (
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias", "use_bias", "use_qk_norm", "use_conv_bias"),
    *("mamba_conv_bias", "mamba_proj_bias", "projectors_bias", "mamba_rms_norm", "attention_k_eq_v", "lm_head_bias"),
    *("use_double_wide_mlp", "attention_out_bias", "qk_layernorm", "conv_bias", "use_shared_attention_adapter"),
    *("add_bias_linear", "use_long_context", "block_auto_adjust_ff_dim"),
)
#: What transformers builds and then cannot run, or builds by ignoring half of a contradiction: refused here.
REFUSED = (
    "is not a multiple of",
    "entries, but num_hidden_layers",
    "but hybrid_override_pattern has",
    "expected 0 to 3",
    "got 0",
)


def variants(config, fields):
    for switch in SWITCHES:
        if switch in fields:
            yield {switch: not config.get(switch, False)}
    for name, value in config.items():
        if isinstance(value, bool):
            yield {name: not value}
        elif isinstance(value, int) and name not in ("pad_token_id", "max_position_embeddings"):
            yield {name: 2 * value}
            yield {name: max(value - 1, 1)}
    yield {"num_hidden_layers": 13}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_field_counts_as_in_transformers(name):
    """Each width changed and each switch turned, one at a time."""
    fields = type(real_cache.config_of(SMALL[name])).__dataclass_fields__
    for change in variants(SMALL[name], fields):
        config = {**SMALL[name], **change}
        try:
            real = real_cache.config_of(config)
            expected = real_cache.parameters(real)
        except Exception:  # transformers does not build it: no oracle
            continue
        if real.model_type in real_cache.HEADLESS and getattr(real, "tie_word_embeddings", False):
            continue
        try:
            found = describe(config)
        except ValueError as error:
            if any(known in str(error) for known in REFUSED):
                continue
            raise
        assert found.parameters.total == expected, change
        if name not in ("rwkv", *ENCODERS):
            assert len(found.layers) == len(real_cache.layer_types(real)), change
