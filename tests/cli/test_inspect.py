"""`sparse-attn inspect`: the strip, the figures, findings with an exit status, JSON by its schema, a page."""

import json
import re

import fastjsonschema
import pytest

from sparse_attn.reports.layer_strip import strip
from sparse_attn.reports.model_json import schema

from ..reports.test_demo_html import Page
from .models import CONFIGS, GEMMA, LLAMA, MISTRAL, QWEN3

check = fastjsonschema.compile(schema())
ALL = sorted(CONFIGS.glob("*.json"))
SMALL = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
MAMBA = {
    "model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100, "num_heads": 8, "head_dim": 16,
    "state_size": 16, "n_groups": 1, "expand": 2, "conv_kernel": 4, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    """Writes a config into a folder: the folder."""

    def write(content, name="model"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(content))
        return folder

    return write


def words(text):
    return " ".join(text.split())


def test_what_it_says(run):
    said = words(run("inspect", MISTRAL).stdout)
    assert "bottom ssssssssssssssssssssssssssssssss top" in said
    assert "32 x sliding window of 4,096 tokens, 32 query and 8 KV heads of 128" in said
    assert "sees everything no layer of 32" in said
    assert "131,041 tokens in theory = 32 x (4,096 - 1) + 1" in said
    assert "1 warning" in said
    assert "window-only · reach: Jiang et al. 2023, arXiv:2310.06825" in said


def test_the_strip_and_where_full_layers_stand(run):
    said = words(run("inspect", GEMMA).stdout)
    assert "bottom sssssFsssssFsssssFsssssFss top" in said
    assert "4 of 26 layers (15%): 5, 11, 17, 23; lowest 5, highest 23 of 25" in said
    assert "longest run without 5 layers" in said


def test_an_inert_field_in_plain_words(run):
    said = words(run("inspect", QWEN3).stdout)
    assert "max_window_layers: 28 is inert: Qwen3-MoE's class never reads it" in said


def test_the_coloured_strip_wraps_at_the_width():
    from sparse_attn.planner import describe, read_config

    model = describe(read_config(CONFIGS / "Llama-3.1-70B.json"))
    for colour in (True, False):
        lines = strip(model, width=60, colour=colour).plain.split("\n")
        assert max(map(len, lines)) <= 60
        assert "".join(lines).count("F") == 80
    assert any("on #e3742b" in str(span.style) for span in strip(model, width=60, colour=True).spans)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([MISTRAL], 0),
        ([MISTRAL, "--fail-on", "warning"], 1),
        ([LLAMA, "--fail-on", "warning"], 0),
        ([LLAMA, "--fail-on", "warning", "--context", "1m"], 1),
        ([LLAMA, "--fail-on", "info"], 1),
        ([MISTRAL, "--fail-on", "warning", "--context", "4k"], 0),
    ],
    ids=["asked-nothing", "a-warning", "no-warning", "beyond-trained", "an-info", "window-holds-it"],
)
def test_exit_status(run, arguments, status):
    result = run("inspect", *arguments)
    assert result.exit_code == status
    assert result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_json_keeps_to_its_schema(run, path):
    found = json.loads(run("inspect", path, "--json").stdout)
    check(found)
    assert found["command"] == "inspect"
    assert [layer["index"] for layer in found["layers"]] == list(range(found["sight"]["layers"]))
    grows = sum(layer["bytes_per_token"] for layer in found["layers"])
    assert grows == pytest.approx(found["kv"]["growing_bytes_per_token"])
    assert found["parameters"]["total"] == sum(found["parameters"]["parts"].values())


def test_json_of_a_model_without_a_context(run, config):
    found = json.loads(run("inspect", config(MAMBA), "--json").stdout)
    check(found)
    assert (found["kv"]["context"], found["kv"]["total_bytes"], found["kv"]["growing_bytes_per_token"]) == (
        None,
        None,
        0,
    )
    assert found["kv"]["bounded_bytes"] > 0


def test_the_schema_refuses_what_it_should(run):
    good = json.loads(run("inspect", LLAMA, "--json").stdout)
    check(good)
    broken = [
        {name: value for name, value in good.items() if name != "findings"},
        good | {"fits": True},
        good | {"layers": []},
        good | {"layers": [good["layers"][0] | {"kind": "dense"}]},
        good | {"findings": [{"rule": "x", "severity": "fatal", "message": "m", "source": "s"}]},
        good | {"kv": good["kv"] | {"growing_bytes_per_token": -1}},
        good | {"command": "plan"},
    ]
    for one in broken:
        with pytest.raises(fastjsonschema.JsonSchemaException):
            check(one)


def test_a_folder_and_a_cached_id(run, config, tmp_path, monkeypatch):
    folder = config(SMALL)
    assert "llama, 2 layers" in words(run("inspect", folder).stdout)
    store = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "abc"
    store.mkdir(parents=True)
    (store / "config.json").write_text(json.dumps(SMALL))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert run("inspect", "org/tiny").stdout.startswith("tiny\n")


def test_assume_full(run, config):
    folder = config(SMALL | {"model_type": "unheard_of"})
    assert run("inspect", folder).exit_code == 2
    result = run("inspect", folder, "--assume", "full", "--fail-on", "warning")
    assert result.exit_code == 1
    assert "every figure is a guess" in words(result.stdout)


def test_download_asks_only_when_told(run, tmp_path, monkeypatch):
    """The hub's library fetches config.json and the index, no weights, and only with --download."""
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    asked = []

    def fetch(name, file):
        asked.append((name, file))
        folder = tmp_path / "models--org--new" / "snapshots" / "abc"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(SMALL))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    result = run("inspect", "org/new")
    assert (result.exit_code, asked) == (2, [])
    assert "nothing is downloaded" in result.stderr
    assert run("inspect", "org/new", "--download").exit_code == 0
    assert asked == [("org/new", "config.json"), ("org/new", "model.safetensors.index.json")]


def test_download_that_fails_is_one_sentence(run, tmp_path, monkeypatch):
    import huggingface_hub

    def fetch(name, file):
        raise ConnectionError("no route\nto the host")

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    result = run("inspect", "org/new", "--download")
    assert result.exit_code == 2
    assert result.stderr == "error: org/new could not be downloaded: no route\n"


def test_the_page(run, config, tmp_path):
    evil = "<script>alert('x')</script>"
    out = tmp_path / "page.html"
    folder = config(SMALL | {"model_type": evil}, name="evil")
    result = run("inspect", folder, "--assume", "full", "--html", out)
    assert (result.exit_code, f"page: {out}" in result.stdout) == (0, True)
    text = out.read_text()
    page = Page(text)
    assert (page.open, page.links, page.tags.count("script")) == ([], [], 0)
    assert "&lt;script&gt;alert" in text
    assert page.tags.count("tr") == 3
    assert "every figure is a guess" in text
    assert not re.search(r"https?:", text)


def test_the_page_fills_cells_to_what_is_seen(run, tmp_path):
    out = tmp_path / "page.html"
    run("inspect", MISTRAL, "--html", out, "--json")
    assert out.read_text().count('<b style="height: 12.50%">') == 32  # 4,096 of 32,768
