"""Figures derived by hand from the models' published widths, and those that others have published."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_attn.planner import (
    attention_flops,
    decode_bytes,
    decode_flops,
    describe,
    find_gpu,
    fit,
    kv_cost,
    prefill_bytes,
    prefill_flops,
    weights_bytes,
    weights_cost,
)

KIB, GB = 1024, 10**9


def model(name, **changes):
    config = json.loads((Path(__file__).parent / "configs" / f"{name}.json").read_text("utf-8"))
    return describe({**config, **changes})


# layers with keys x KV heads x (key dim + value dim) x 2 bytes
PER_TOKEN = {
    "Qwen3-30B-A3B": 48 * 4 * 256 * 2,  # 96 KiB
    "Qwen3.5-35B-A3B": 10 * 2 * 512 * 2,  # 20 KiB
    "Llama-3.1-8B": 32 * 8 * 256 * 2,  # 128 KiB
    "Llama-3.1-70B": 80 * 8 * 256 * 2,
    "DeepSeek-V3": 61 * (512 + 64) * 2,
    "DeepSeek-V3.2": 61 * (512 + 64 + 128) * 2,  # and an index key of 128
    "Kimi-K2-Instruct": 61 * (512 + 64) * 2,
    "Jamba-v0.1": 4 * 8 * 256 * 2,
    "Mistral-7B-v0.1": 0,
    "Gemma-2-9B": 21 * 8 * 512 * 2,
    "Gemma-3-1B-it": 4 * 1 * 512 * 2,
    "gpt-oss-120b": 18 * 8 * 128 * 2,
    "Llama-4-Scout-17B-16E-Instruct": 12 * 8 * 256 * 2,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 6 * 2 * 256 * 2,
    "Falcon-H1-0.5B": 36 * 2 * 128 * 2,
    "MiniMax-M2.5": 62 * 8 * 256 * 2,
    "Qwen3-Next-80B-A3B": 12 * 2 * 512 * 2,
}

BOUNDED_AT_128K = {
    "Mistral-7B-v0.1": 32 * 4096 * 8 * 256 * 2,
    "Gemma-2-9B": 21 * 4096 * 8 * 512 * 2,
    "Gemma-3-1B-it": 22 * 512 * 1 * 512 * 2,
    "gpt-oss-120b": 18 * 128 * 8 * 128 * 2,
    "Llama-4-Scout-17B-16E-Instruct": 36 * 8192 * 8 * 256 * 2,
    # a state of 32 x 128 x 128 float32, and 3 inputs of 2 x 16 x 128 + 32 x 128 channels
    "Qwen3.5-35B-A3B": 30 * (32 * 128 * 128 * 4 + 3 * 8192 * 2),
    "Jamba-v0.1": 28 * (8192 * 16 * 4 + 3 * 8192 * 2),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 23 * (64 * 64 * 128 * 4 + 3 * (4096 + 2 * 8 * 128) * 2),
    "Llama-3.1-8B": 0,
    "DeepSeek-V3": 0,
}


@pytest.mark.parametrize("name", PER_TOKEN)
def test_growing_bytes_per_token(name):
    cost = kv_cost(model(name), 131072)
    assert cost.growing_bytes_per_token == PER_TOKEN[name]
    assert cost.growing_bytes_per_token == sum(layer.bytes_per_token for layer in cost.layers)
    assert cost.total_bytes == PER_TOKEN[name] * 131072 + cost.bounded_bytes


@pytest.mark.parametrize("name", BOUNDED_AT_128K)
def test_bounded_bytes(name):
    cost = kv_cost(model(name), 131072)
    assert cost.bounded_bytes == BOUNDED_AT_128K[name]
    assert sum(layer.bounded_bytes for layer in cost.layers) == cost.bounded_bytes


def test_kv_dtypes_and_batch():
    llama = model("Llama-3.1-8B")
    sizes = {
        dtype: kv_cost(llama, 1000, batch=3, kv_dtype=dtype).total_bytes for dtype in ("bf16", "fp8", "int8", "int4")
    }
    assert sizes == {"bf16": 3 * 131072000, "fp8": 3 * 65536000, "int8": 3 * 65536000, "int4": 3 * 32768000}
    hybrid = model("Qwen3.5-35B-A3B")  # a state keeps its own format
    assert kv_cost(hybrid, 8, kv_dtype="fp8").bounded_bytes == kv_cost(hybrid, 8).bounded_bytes


def test_a_window_keeps_its_keys_and_no_more():
    mistral = model("Mistral-7B-v0.1")
    totals = [kv_cost(mistral, tokens).total_bytes for tokens in (4095, 4096, 4097, 10**6)]
    assert [total // (32 * 8 * 256 * 2) for total in totals] == [4095, 4096, 4096, 4096]


@pytest.mark.parametrize("name", ["Qwen3-Coder-30B-A3B-Instruct", "SmolLM3-3B"])
def test_a_value_that_makes_no_layer_slide_is_named(name):
    found = model(name)
    assert {layer.kind for layer in found.layers} == {"full"}
    assert "max_window_layers" in [one.field for one in found.inert]


class TestPublishedFigures:
    """On 80 x 10^9 bytes at 16 bits, without workspace: as a model comparison that was published counts."""

    CARD = find_gpu("a100-80gb").with_memory(80 * GB)

    def test_qwen3(self):
        found = fit(model("Qwen3-30B-A3B"), self.CARD, context=262144, utilization=1.0)
        assert found.kv.growing_bytes_per_token == 96 * KIB
        assert found.kv.total_bytes / GB == pytest.approx(26, abs=0.5)
        assert found.weights_and_kv_bytes / GB == pytest.approx(87, abs=0.5)
        assert not found.fits
        assert found.max_context_before_overhead == (80 * GB - 2 * 30532122624) // (96 * KIB) == 192624
        assert found.max_context < found.max_context_before_overhead

    def test_qwen35(self):
        found = fit(model("Qwen3.5-35B-A3B"), self.CARD, context=262144, utilization=1.0)
        assert found.kv.growing_bytes_per_token == 20 * KIB
        assert found.kv.total_bytes / GB == pytest.approx(5.4, abs=0.1)
        assert found.weights_and_kv_bytes / GB == pytest.approx(75, abs=0.5)
        assert found.fits
        assert found.remedies == ()

    def test_active_parameters(self):
        """The models' cards: 3.3B, 3B, 37B, 12B, 12.9B active (embeddings counted)."""
        cards = {
            "Qwen3-30B-A3B": 3.35,
            "Qwen3.5-35B-A3B": 3.45,
            "DeepSeek-V3": 37.5,
            "Jamba-v0.1": 12.1,
            "Mixtral-8x7B-v0.1": 12.9,
        }
        for name, billions in cards.items():
            assert model(name).parameters.active / 1e9 == pytest.approx(billions, abs=0.06)


def test_weights_by_dtype():
    llama = model("Llama-3.1-8B")
    total, tables = llama.parameters.total, 2 * 128256 * 4096
    norms = (2 * 32 + 1) * 4096
    packed = total - tables - norms
    assert weights_bytes(llama) == weights_bytes(llama, "bf16") == 2 * total
    assert weights_bytes(llama, "fp32") == 4 * total
    rest = 2 * (tables + norms)
    assert weights_bytes(llama, "nf4") == packed * 4.5 / 8 + rest
    assert weights_bytes(llama, "mxfp4") == packed * 4.25 / 8 + rest
    assert weights_bytes(llama, "int4") == pytest.approx(packed * 4.15625 / 8 + rest, abs=10)
    assert weights_bytes(llama, "fp8") == pytest.approx(packed * (1 + 4 / 128**2) + rest, abs=10)
    assert weights_bytes(llama, "Q8_0") == pytest.approx((packed + tables) * 34 / 32 + 4 * norms, abs=10)
    assert weights_bytes(llama, "Q4_K_M") / GB == pytest.approx(4.92, abs=0.02)  # the published file of that name


def test_a_checkpoint_counts_as_it_is_stored():
    """gpt-oss-120b's safetensors hold 65.2 GB, DeepSeek-V3's main model in fp8 about 675 GB."""
    assert weights_bytes(model("gpt-oss-120b")) / GB == pytest.approx(65.2, rel=0.01)
    assert weights_bytes(model("DeepSeek-V3")) / GB == pytest.approx(675, rel=0.01)


STORED = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 64}, "int4", 4 + 20 / 64),
    "gptq in 8 bits": ({"quant_method": "gptq", "bits": 8, "group_size": 64}, "int8", 8 + 16 / 4096),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", 4 + 20 / 128),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", 4.5),
    "bitsandbytes, scales packed too": (
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        },
        "nf4",
        4 + 8 / 64 + 32 / (64 * 256),
    ),
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True}}
            },
        },
        "int4",
        4.5,
    ),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 8 + 32 / 128**2),
}


@pytest.mark.parametrize("name", STORED)
def test_quantized_checkpoints(name):
    given, dtype, bits = STORED[name]
    found = model("Llama-3.1-8B", quantization_config=given)
    assert found.quantization.weights == dtype
    plain = 2 * (2 * 128256 * 4096 + 65 * 4096)
    packed = found.parameters.total - plain // 2
    assert weights_bytes(found) == pytest.approx(packed * bits / 8 + plain, abs=10)


SPARED = {
    "gpt-oss": (
        ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        ("attention",),
    ),
    "kimi-k2-thinking": (
        ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
        ("attention", "shared experts", "mlp"),
    ),
    "minimax": (["gate", "e_score_correction_bias", "lm_head"], ()),
    "one layer only": (["model.layers.3.self_attn"], ()),
}


@pytest.mark.parametrize("name", SPARED)
def test_modules_that_a_checkpoint_leaves_alone(name):
    names, parts = SPARED[name]
    given = {"quant_method": "fp8", "modules_to_not_convert": names}
    found = weights_cost(model("DeepSeek-V3", quantization_config=given))
    assert found.spared == parts
    bits = {part: 8 * size / count for part, count, size in found.parts if part in ("experts", "shared experts")}
    assert bits["experts"] == pytest.approx(8, abs=0.01)
    assert bits["shared experts"] == pytest.approx(16 if "shared experts" in parts else 8, abs=0.01)


class TestFlops:
    def test_dense_attention(self):
        llama = model("Llama-3.1-8B")
        n = 1000
        assert attention_flops(llama, n) == 32 * 4 * 32 * 128 * n * (n + 1) // 2
        matrices = llama.parameters.total - 2 * 128256 * 4096 - 65 * 4096
        assert prefill_flops(llama, n).linear == 2 * (matrices * n + 128256 * 4096)
        assert decode_flops(llama, n).attention == 32 * 4 * 32 * 128 * (n + 1)

    @pytest.mark.parametrize(
        ("name", "length"),
        [
            ("Mistral-7B-v0.1", 4200),
            ("Llama-4-Scout-17B-16E-Instruct", 8300),
            ("DeepSeek-V3.2", 2200),
            ("Qwen3.5-35B-A3B", 300),
        ],
    )
    def test_prefill_is_the_sum_of_its_positions(self, name, length):
        """Closed forms against one query at a time: windows, chunks, top-k and states."""
        found = model(name)
        few = replace(found, layers=found.layers[:4])
        one_by_one = sum(decode_flops(few, position).attention for position in range(length))
        assert prefill_flops(few, length).attention == one_by_one

    def test_prefill_reads_weights_and_cache_once_a_step(self):
        llama = model("Llama-3.1-8B")
        found = prefill_bytes(llama, 5000, chunk=2048)
        assert found.kv == 131072 * (2048 + 4096 + 5000)
        assert found.weights == 3 * 2 * (llama.parameters.total - 128256 * 4096)

    def test_decode_reads_what_is_kept(self):
        llama = model("Llama-3.1-8B")
        assert decode_bytes(llama, 5000, batch=2).kv == kv_cost(llama, 5000, batch=2).total_bytes
        indexed = model("DeepSeek-V3.2")
        assert decode_bytes(indexed, 100_000).kv == 61 * 2 * (100_000 * 128 + 2048 * 576)
        mixed = model("Qwen3-30B-A3B")
        one, many = (decode_bytes(mixed, 1, batch=batch).weights for batch in (1, 10_000))
        assert one / 2 == pytest.approx(
            mixed.parameters.active - 151936 * 2048, rel=1e-6
        )  # but for the embedding's rows
        assert many / 2 == pytest.approx(mixed.parameters.total - 151936 * 2048, rel=1e-6)
