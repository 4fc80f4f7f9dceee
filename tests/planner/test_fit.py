"""What fits: the sum of its parts, the edges found by bisection, and remedies that hold what they promise."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_attn.patterns import Sinks, Window, parse
from sparse_attn.planner import (
    allowed_splits,
    describe,
    find_gpu,
    fit,
    gpus,
    kv_cost,
    prefill_flops,
    weights_bytes,
    with_pattern,
    workspace,
)

from .small_configs import SMALL

A100 = find_gpu("a100-80gb")


def model(name):
    return describe(json.loads((Path(__file__).parent / "configs" / f"{name}.json").read_text("utf-8")))


LLAMA = model("Llama-3.1-8B")


def test_parts_add_up():
    found = fit(LLAMA, A100, context=32768, batch=4)
    assert found.weights_bytes == weights_bytes(LLAMA)
    assert found.kv.total_bytes == 4 * 32768 * 131072
    assert found.required_bytes == found.weights_bytes + found.kv.total_bytes + found.workspace.total_bytes
    assert found.available_bytes == int(81920 * 1024**2 * 0.9)
    assert found.fits == (found.required_bytes <= found.available_bytes)


@pytest.mark.parametrize("accounting", ["exact", "transformers", "vllm"])
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Gemma-3-1B-it", "Qwen3.5-35B-A3B", "DeepSeek-V3.2", "gpt-oss-120b"])
def test_the_edges_are_edges(name, accounting):
    """One token more, or one sequence more, than the largest does not fit."""
    options = {"gpus": 8 if name.startswith("Deep") else 1, "accounting": accounting, "weights": "int4"}
    first = fit(model(name), A100.with_memory(100 * 1024**3), context=5000, batch=3, **options)
    ask = dict(options, batch=3)
    if first.max_context:
        assert fit(model(name), first.gpu, context=first.max_context, **ask).fits
        assert not fit(model(name), first.gpu, context=first.max_context + 1, **ask).fits
    if first.max_batch:
        ask = dict(options, context=5000)
        assert fit(model(name), first.gpu, batch=first.max_batch, **ask).fits
        assert not fit(model(name), first.gpu, batch=first.max_batch + 1, **ask).fits
    assert first.fits == bool(first.max_context is None or first.max_context >= 5000)


def test_a_window_only_model_has_no_longest_context():
    found = fit(model("Mistral-7B-v0.1"), A100, batch=2)
    assert found.max_context is None
    assert found.context == 32768  # the advertised one


def test_nothing_fits_on_a_small_card():
    found = fit(LLAMA, find_gpu("rtx-3060-12gb"))
    assert (found.fits, found.max_context, found.max_batch) == (False, 0, 0)


@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "Llama-3.1-70B", "gpt-oss-120b", "Gemma-2-9B", "DeepSeek-V3"])
def test_remedies_hold_what_they_promise(name):
    described = model(name)
    card = find_gpu("h100") if name != "Gemma-2-9B" else find_gpu("l4")
    found = fit(described, card, context=262144, batch=8)
    assert not found.fits
    assert found.remedies
    flags = [one.fits for one in found.remedies]
    assert flags == sorted(flags, reverse=True)  # what is enough stands first
    for one in found.remedies:
        ask = {"context": 262144, "batch": 8, "kv": "bf16", "weights": None, "gpus": 1}
        changed = described
        match one.change:
            case "kv" | "weights":
                ask[one.change] = one.value
            case "gpus" | "context" | "batch":
                ask[one.change] = int(one.value)
            case "kv and weights":
                ask["kv"], ask["weights"] = one.value.split(" and ")
            case "pattern":
                full = [layer.index for layer in described.layers if layer.kind == "full"]
                kept = [] if one.price.startswith("all ") else full[3::4]
                layers = [index for index in full if index not in kept]
                changed = with_pattern(described, parse(one.value), layers=layers)
        again = fit(changed, card, **ask)
        assert again.required_bytes == one.required_bytes
        assert again.fits == one.fits
        assert again.max_context == one.max_context


def test_splits_respect_the_heads():
    assert allowed_splits(LLAMA, 64) == (1, 2, 4, 8, 16, 32)  # 8 KV heads: copied above
    qwen = model("Qwen3-30B-A3B")
    shares = [fit(qwen, A100, gpus=count, context=1000).kv.total_bytes for count in (1, 2, 4, 8)]
    assert shares == [98304000, 49152000, 24576000, 24576000]  # 4 KV heads
    latent = model("DeepSeek-V3")
    whole = kv_cost(latent, 1000).total_bytes
    assert kv_cost(latent, 1000, tensor_parallel=8).total_bytes == whole  # one latent, on every card
    with pytest.raises(ValueError, match="gpus 3 cannot share this model by its heads: layer 0 has 32 query heads"):
        fit(LLAMA, A100, gpus=3)
    two = fit(LLAMA, A100, gpus=2, context=1000).weights_bytes
    norms = 2 * 65 * 4096
    assert two == (weights_bytes(LLAMA) - norms) // 2 + norms


def test_bounds_are_bytes_over_bandwidth_and_flops_over_rate():
    found = fit(LLAMA, A100, context=10_000, batch=2)
    read = 2 * (LLAMA.parameters.total - 128256 * 4096) + 2 * 10_000 * 131072  # but for the embedding's rows
    assert found.bounds.decode_seconds == pytest.approx(read / 2.039e12)
    assert found.bounds.batch_tokens_per_second == pytest.approx(2 * found.bounds.decode_tokens_per_second)
    assert found.bounds.prefill_seconds == pytest.approx(prefill_flops(LLAMA, 10_000).total / 312e12)
    quick = fit(LLAMA, find_gpu("h100"), context=10_000, weights="fp8").bounds
    assert (quick.rate_name, quick.rate) == ("fp8", pytest.approx(1978.9e12))
    shared = fit(LLAMA, A100, gpus=4, context=10_000, batch=2).bounds
    assert shared.decode_seconds == pytest.approx(read / 4 / 2.039e12)
    latent = fit(model("DeepSeek-V3"), A100, gpus=8, context=10_000).bounds
    assert latent.traffic.kv == 10_000 * 61 * 576 * 2  # every card reads the whole latent
    crowd = fit(LLAMA, A100, context=1, batch=100_000).bounds  # a large batch is bound by arithmetic
    assert crowd.decode_seconds == pytest.approx(100_000 * crowd.decode.total / 312e12)


def test_workspace_is_the_larger_phase_and_the_logits():
    found = workspace(LLAMA, chunk=1000, batch=5)
    assert found.activations_bytes == 1000 * (2 * 4096 + 3 * 14336) * 2
    assert found.logits_bytes == 5 * 128256 * 6


class TestPatterns:
    def test_a_pattern_bounds_the_cache(self):
        cut = with_pattern(LLAMA, Window(1024) | Sinks(4), layers=range(24))
        cost = kv_cost(cut, 100_000)
        assert cost.growing_bytes_per_token == 8 * 4096
        assert cost.bounded_bytes == 24 * 1028 * 4096

    def test_pairs_are_the_pattern_s(self):
        pattern = Window(300) | Sinks(4)
        cut = with_pattern(LLAMA, pattern)
        assert prefill_flops(cut, 5000).attention == 32 * 4 * 32 * 128 * pattern.pairs(5000)

    @pytest.mark.parametrize(
        ("text", "entries"),
        [
            ("chunked(512)", 512),
            ("window(100) | strided(50)", 100 + 10_000 // 50),
            ("window(100) | sinks(4) | global((0, 7))", 105),
            ("window(100) | random(3)", 10_000),
            ("window(100) | dilated(5, 30)", 121),
            ("sinks(4).within(window(60))", 60),
            ("window(100) | full()", 10_000),
        ],
    )
    def test_what_stays(self, text, entries):
        assert kv_cost(with_pattern(LLAMA, parse(text)), 10_000).total_bytes == 131072 * entries

    def test_a_layer_without_full_attention_is_refused(self):
        with pytest.raises(ValueError, match=r"layers must name layers with full attention .*, got 32"):
            with_pattern(LLAMA, Window(4), layers=[32])


class TestVllm:
    """The allocator's own sums, by hand."""

    def test_pages_and_the_null_block(self):
        cost = kv_cost(LLAMA, 1001, batch=3, accounting="vllm")
        page = 16 * 131072  # 16 tokens in all 32 layers
        assert cost.total_bytes == 3 * 63 * page + page
        assert cost.reserved_bytes == page

    def test_an_index_has_pages_of_its_own(self):
        cost = kv_cost(model("DeepSeek-V3.2"), 1600, accounting="vllm")
        per_token = 61 * (576 * 2 + 128 + 4)  # a latent in 16 bits, an index key in 8 with a float32 scale
        assert cost.growing_bytes_per_token == per_token
        assert cost.total_bytes == (1600 + 16) * per_token

    def test_a_window_holds_what_is_in_flight(self):
        gemma = model("Gemma-3-1B-it")  # 22 sliding layers in groups of 4, so 2 are padding; 4 full
        layer = 16 * 1 * 512 * 2
        pages = -(-(511 + 2048) // 16) + 1
        cost = kv_cost(gemma, 100_000, accounting="vllm", chunk=2048)
        assert cost.total_bytes == (24 * pages + 4 * 6250) * layer + 4 * layer

    def test_a_state_takes_a_page(self):
        qwen = model("Qwen3.5-35B-A3B")
        state = 32 * 128 * 128 * 4 + 3 * 8192 * 2  # mamba_ssm_dtype is float32
        tokens = 16 * -(-state // (16 * 2048))
        assert tokens == 1056
        page = tokens * 2048
        cost = kv_cost(qwen, 262144, accounting="vllm")
        assert cost.total_bytes == (30 + 10 * -(-262144 // tokens)) * page + 10 * page
        unnamed = replace(qwen, state_dtype=None)  # then the state has the model's own format
        assert kv_cost(unnamed, 1, accounting="vllm").total_bytes < kv_cost(qwen, 1, accounting="vllm").total_bytes

    def test_chunked_layers_lose_their_bound(self):
        scout = model("Llama-4-Scout-17B-16E-Instruct")
        cost = kv_cost(scout, 160_000, accounting="vllm")
        assert cost.growing_bytes_per_token == 48 * 4096
        assert "chunked" in cost.notes[1]

    @pytest.mark.parametrize("name", SMALL)
    def test_never_less_than_what_is_needed(self, name):
        described = describe(SMALL[name])
        for tokens in (1, 5, 21, 1000):
            needed = kv_cost(replace(described, state_dtype="bfloat16"), tokens).total_bytes
            if name.startswith("deepseek-v3") and described.layers[0].kind == "indexed":
                continue  # vLLM keeps an index's keys in 8 bits
            if name.startswith(("glm-moe-dsa", "deepseek-v4", "recurrent-gemma", "rwkv")):
                continue  # the same, and families that vLLM keeps in other ways or not at all
            assert kv_cost(described, tokens, accounting="vllm").total_bytes >= needed


def test_gpus_are_whole():
    for gpu in gpus():
        assert 10 * 1024**3 < gpu.memory_bytes < 300 * 1024**3
        assert gpu.bandwidth > 1e11
        assert gpu.bf16 > 1e13
        assert gpu.source
        assert gpu.fp8 is None or gpu.fp8 > 1.5 * gpu.bf16
        assert find_gpu(gpu.name) is gpu
    names = [name for gpu in gpus() for name in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names))
    assert find_gpu("NVIDIA A100 80GB").name == "a100-80gb"


BAD = {
    "no tokens": ({"context": 0}, "context must be a whole number from 1"),
    "not a number": ({"context": float("nan")}, "context must be a whole number from 1 .*, got nan"),
    "no sequence": ({"batch": 0}, "batch must be"),
    "no card": ({"gpus": 0}, "gpus must be"),
    "more than all": ({"utilization": 1.5}, "utilization must be above 0 and at most 1, got 1.5"),
    "less than nothing": ({"utilization": 0}, "utilization must be above 0"),
    "utilization nan": ({"utilization": float("nan")}, "utilization must be above 0"),
    "unknown kv": ({"kv": "fp6"}, "kv must be one of fp32, bf16"),
    "unknown weights": ({"weights": "q4"}, "weights must be one of fp32, bf16.*near: "),
    "unknown accounting": ({"accounting": "sglang"}, "accounting must be one of exact, transformers, vllm"),
    "no chunk": ({"chunk": -1}, "chunk must be"),
}


@pytest.mark.parametrize(("options", "sentence"), BAD.values(), ids=BAD)
def test_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit(LLAMA, A100, **options)


def test_an_unknown_card_and_no_context():
    with pytest.raises(ValueError, match="gpu 'a100-80g' is not known; nearest: a100-80gb"):
        find_gpu("a100-80g")
    with pytest.raises(ValueError, match="gpu memory must be a positive whole number of bytes, got -1"):
        A100.with_memory(-1)
    with pytest.raises(ValueError, match="context is missing"):
        fit(describe(SMALL["mamba2"] | {"max_position_embeddings": None}), A100)
