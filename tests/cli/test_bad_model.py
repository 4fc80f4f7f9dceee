"""Bad models and options of `inspect` and `plan`: one sentence on stderr, exit status 2, nothing on stdout, nothing written."""

import json
import os

import pytest

from .models import LLAMA
from .test_inspect import SMALL

BAD_FILES = {
    "words.json": "no JSON at all",
    "cut.json": '{"model_type": "llama",',
    "list.json": "[1, 2]",
    "deep.json": "[" * 100_000,
    "nan.json": json.dumps(SMALL | {"max_position_embeddings": float("nan")}),
    "untyped.json": json.dumps({name: value for name, value in SMALL.items() if name != "model_type"}),
    "typed-7.json": json.dumps(SMALL | {"model_type": 7}),
    "unknown.json": json.dumps(SMALL | {"model_type": "lama", "sliding_window": 128}),
    "layerless.json": json.dumps({name: value for name, value in SMALL.items() if name != "num_hidden_layers"}),
    "negative.json": json.dumps(SMALL | {"hidden_size": -64}),
    "zero.json": json.dumps(SMALL | {"num_hidden_layers": 0}),
    "fraction.json": json.dumps(SMALL | {"num_attention_heads": 2.5}),
    "heads.json": json.dumps(SMALL | {"num_attention_heads": 4, "num_key_value_heads": 3}),
    "context.json": json.dumps(SMALL | {"max_position_embeddings": -1}),
    "types.json": json.dumps(SMALL | {"model_type": "olmo3", "layer_types": ["full_attention"], "sliding_window": 4}),
    "window.json": json.dumps(SMALL | {"model_type": "mistral", "sliding_window": -4}),
}
MODELS = {
    "missing file": ("absent.json", "absent.json not found"),
    "a folder without config": ("empty", "is a folder without config.json"),
    "not JSON": ("words.json", "words.json is not JSON"),
    "half of JSON": ("cut.json", "cut.json is not JSON"),
    "a list": ("list.json", "must hold a JSON object, got list"),
    "nested without end": ("deep.json", "deep.json"),
    "binary": ("binary.json", "binary.json is not JSON: not UTF-8 text"),
    "2 GB": ("huge.json", "huge.json has 2,147,483,648 bytes, expected a config.json of at most"),
    "2 GB of GGUF": ("huge.gguf", "huge.gguf"),
    "NaN context in the file": ("nan.json", "NaN"),
    "no model type": ("untyped.json", "has no model_type"),
    "model type that is no text": ("typed-7.json", "model_type must be a text, got 7"),
    "unknown model type": ("unknown.json", "model_type 'lama' has no rule here (near: "),
    "no layers": ("layerless.json", "num_hidden_layers"),
    "negative size": ("negative.json", "hidden_size"),
    "zero layers": ("zero.json", "num_hidden_layers"),
    "half a head": ("fraction.json", "num_attention_heads"),
    "heads that do not divide": ("heads.json", "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    "negative context": ("context.json", "max_position_embeddings"),
    "contradictory layer types": ("types.json", "layer_types"),
    "negative window": ("window.json", "sliding_window"),
    "empty name": ("", "MODEL is empty"),
    "an id that is not there": ("org/absent", "org/absent is neither a file nor in the local Hugging Face cache"),
    "a device": ("/dev/null", "/dev/null"),
}
OPTIONS = {
    "no model": (["plan"], "Missing argument"),
    "unknown GPU": (["plan", LLAMA, "--gpu", "a100-80g"], "--gpu 'a100-80g' is not known; nearest: a100-80gb"),
    "a GPU of fancy": (["plan", LLAMA, "--gpu", ""], "--gpu '' is not known; nearest: "),
    "NaN context": (
        ["plan", LLAMA, "--context", "nan"],
        "expected a number of tokens such as 32768, 256k or 1m, got 'nan'",
    ),
    "negative context": (["plan", LLAMA, "--context", "-5"], "got '-5'"),
    "zero context": (["inspect", LLAMA, "--context", "0"], "got '0'"),
    "endless context": (["inspect", LLAMA, "--context", "1" * 40], "expected a number of tokens"),
    "context of many": (["inspect", LLAMA, "--context", "12q"], "got '12q'"),
    "no batch": (["plan", LLAMA, "--batch", "0"], "expected a whole number from 1"),
    "batch and a half": (["plan", LLAMA, "--batch", "1.5"], "got '1.5'"),
    "no GPUs": (["plan", LLAMA, "--gpus", "0"], "expected a whole number from 1"),
    "heads that three cannot share": (["plan", LLAMA, "--gpus", "3"], "gpus 3 cannot share this model by its heads"),
    "more than all memory": (
        ["plan", LLAMA, "--utilization", "1.5"],
        "expected a number above 0 and at most 1, got '1.5'",
    ),
    "NaN memory share": (["plan", LLAMA, "--utilization", "nan"], "got 'nan'"),
    "memory in words": (["plan", LLAMA, "--gpu-memory", "much"], "expected an amount of memory such as 80GB or 24GiB"),
    "no memory": (["plan", LLAMA, "--gpu-memory", "0GB"], "got '0GB'"),
    "unknown KV format": (["plan", LLAMA, "--kv", "int3"], "kv must be one of"),
    "unknown weight format": (["plan", LLAMA, "--weights", "bf17"], "weights must be one of"),
    "unknown accounting": (
        ["plan", LLAMA, "--accounting", "sglang"],
        "expected exact or vllm or transformers, got 'sglang'",
    ),
    "assume what": (["inspect", LLAMA, "--assume", "sparse"], "expected full, got 'sparse'"),
    "fail on what": (["inspect", LLAMA, "--fail-on", "error"], "expected info or warning, got 'error'"),
    "page in no folder": (["plan", LLAMA, "--html", "absent/plan.html"], "absent: folder not found"),
    "page over a folder": (["inspect", LLAMA, "--html", "."], "is a folder"),
    "download of a path": (
        ["inspect", "./absent.json", "--download"],
        "--download needs a model's id such as org/name",
    ),
    "the second model": (["plan", LLAMA, "negative.json"], "hidden_size"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "empty").mkdir()
    for name, content in BAD_FILES.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("huge.json", "huge.gguf"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2**31)  # sparse: takes no space
    return tmp_path


def assert_one_sentence(result, folder, sentence, before):
    assert result.exit_code == 2
    assert result.stdout == ""
    (said,) = result.stderr.splitlines()
    assert said.startswith("error: ")
    assert sentence in said
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize(("model", "sentence"), MODELS.values(), ids=MODELS.keys())
def test_a_bad_model(run, folder, model, sentence):
    before = sorted(os.listdir(folder))
    assert_one_sentence(run("inspect", model), folder, sentence, before)
    assert_one_sentence(run("plan", model, "--html", "plan.html"), folder, sentence, before)


@pytest.mark.parametrize(("arguments", "sentence"), OPTIONS.values(), ids=OPTIONS.keys())
def test_a_bad_option(run, folder, arguments, sentence):
    assert_one_sentence(run(*arguments), folder, sentence, sorted(os.listdir(folder)))


def test_an_unknown_type_says_what_would_settle_it(run, folder):
    said = run("inspect", "unknown.json").stderr
    assert "sliding_window" in said
    assert "layer_types" in said
    assert "--assume full" in said
