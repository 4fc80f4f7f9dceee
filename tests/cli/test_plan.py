"""`sparse-attn plan`: published figures, what fits, the table of several models, JSON by its schema, the page."""

import json
import re

import fastjsonschema
import pytest

from sparse_attn.reports.model_json import schema

from .models import CONFIGS, GEMMA, LLAMA, MISTRAL, QWEN3, QWEN35
from .test_inspect import MAMBA, config, words  # noqa: F401

check = fastjsonschema.compile(schema())
AS_PUBLISHED = ["--gpu", "a100-80gb", "--context", "256k", "--gpu-memory", "80GB", "--utilization", "1.0"]


def asked(run, *arguments):
    result = run("plan", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    check(found)
    return found


def test_published_figures(run):
    """Qwen3-30B-A3B: 96 KiB a token, about 26 GB and 87 GB with weights; Qwen3.5-35B-A3B: 20 KiB, about 5 GB and 75 GB."""
    first, second = asked(run, QWEN3, *AS_PUBLISHED), asked(run, QWEN35, *AS_PUBLISHED)
    assert first["kv"]["growing_bytes_per_token"] == 96 * 1024
    assert first["kv"]["total_bytes"] / 1e9 == pytest.approx(26, abs=0.5)
    assert (first["weights_bytes"] + first["kv"]["total_bytes"]) / 1e9 == pytest.approx(87, abs=0.5)
    assert first["fits"] is False
    assert first["max_context_before_overhead"] == pytest.approx(190_000, rel=0.02)
    assert second["kv"]["growing_bytes_per_token"] == 20 * 1024
    assert second["kv"]["total_bytes"] / 1e9 == pytest.approx(5.4, abs=0.1)
    assert (second["weights_bytes"] + second["kv"]["total_bytes"]) / 1e9 == pytest.approx(75, abs=0.5)
    assert second["fits"] is True


def test_the_difference_to_the_true_card_is_explained(run):
    said = words(run("plan", QWEN3, *AS_PUBLISHED).stdout)
    assert "does not fit: 262,144 tokens need 86.9 GB of the 80.0 GB" in said
    assert "weights and cache alone are 86.8 GB" in said
    assert "without that workspace 192,624 tokens would fit" in said
    assert "a real a100-80gb reports 81,920 MiB = 85.9 GB" in said
    assert "engines use 90% by default: 77.3 GB" in said
    true = words(run("plan", QWEN3, "--gpu", "a100-80gb", "--context", "256k").stdout)
    assert "need 86.9 GB of the 77.3 GB" in true
    assert "a real a100-80gb" not in true


def test_what_would_help_is_ranked_and_true(run):
    found = asked(run, QWEN3, "--gpu", "a100-80gb", "--context", "256k")
    first = found["remedies"][0]
    assert (first["change"], first["value"], first["fits"]) == ("kv", "fp8", True)
    again = asked(run, QWEN3, "--gpu", "a100-80gb", "--context", "256k", "--kv", "fp8")
    assert again["fits"] is True
    assert again["per_gpu"]["required_bytes"] == first["required_bytes"]
    assert again["remedies"] == []
    said = words(run("plan", QWEN3, "--gpu", "a100-80gb", "--context", "256k").stdout)
    assert "--kv fp8 fits: 74.0 GB" in said
    assert "window(32768) | sinks(4)" in said


def test_the_largest_context_and_batch_are_the_largest(run):
    options = ["--gpu", "l40s", "--context", "8k"]
    found = asked(run, LLAMA, *options)
    edge, most = found["max_context"], found["max_batch"]
    assert asked(run, LLAMA, "--gpu", "l40s", "--context", edge)["fits"] is True
    assert asked(run, LLAMA, "--gpu", "l40s", "--context", edge + 1)["fits"] is False
    assert asked(run, LLAMA, *options, "--batch", most)["fits"] is True
    assert asked(run, LLAMA, *options, "--batch", most + 1)["fits"] is False


def test_bounds_are_called_bounds(run):
    said = words(run("plan", LLAMA, "--gpu", "h100", "--context", "32k", "--batch", "4").stdout)
    assert re.search(r"decode at most [\d.,]+ tokens/s for a sequence, [\d.,]+ for the batch \(bound: ", said)
    assert re.search(r"prefill of 32,768 tokens at least .* \(bound: ", said)
    table = words(run("plan", LLAMA, MISTRAL, "--gpu", "h100").stdout)
    assert "* a bound, not a measurement" in table


def test_several_models_in_one_table(run):
    said = run("plan", QWEN3, QWEN35, GEMMA, "--gpu", "a100-80gb", "--context", "256k").stdout
    assert "262,144 tokens on a100-80gb, 77.3 GB to be used (90% of 85.9 GB)" in words(said)
    assert max(map(len, said.splitlines())) <= 80
    rows = [line.split() for line in said.splitlines()]
    assert any({"61.1", "96", "25.8", "86.9", "no", "164,306"} <= set(row) for row in rows)
    assert any({"69.3", "20", "5.4", "yes"} <= set(row) for row in rows)
    found = asked(run, QWEN3, QWEN35, "--gpu", "a100-80gb", "--context", "256k")
    assert [model["name"] for model in found["models"]] == [QWEN3.stem, QWEN35.stem]


def test_each_at_its_own_context(run):
    said = run("plan", LLAMA, GEMMA).stdout
    assert "each model at its advertised context" in words(said)
    assert "at 131,072" in said
    assert "at 32,768" in said
    assert "no --gpu was given: a100-80gb was taken" in said


@pytest.mark.parametrize("accounting", ["exact", "vllm", "transformers"])
def test_accounting_is_named(run, accounting):
    found = asked(run, MISTRAL, "--gpu", "h100", "--accounting", accounting)
    assert found["kv"]["accounting"] == accounting
    assert f"accounting: {accounting}" in words(
        run("plan", MISTRAL, "--gpu", "h100", "--accounting", accounting).stdout
    )


def test_accountings_differ_where_windows_do(run):
    sizes = {
        name: asked(run, MISTRAL, "--accounting", name)["kv"]["total_bytes"]
        for name in ("exact", "vllm", "transformers")
    }
    assert sizes["exact"] == 32 * 2 * 8 * 128 * 2 * 4096
    assert sizes["transformers"] == sizes["exact"] // 4096 * 4095
    assert sizes["vllm"] > sizes["exact"]


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("Q*.json")) + sorted(CONFIGS.glob("[JN]*.json")), ids=lambda path: path.stem
)
def test_json_keeps_to_its_schema(run, path):
    found = asked(
        run, path, "--gpu", "rtx-4090", "--weights", "int4", "--kv", "fp8", "--batch", "2", "--context", "64k"
    )
    held = found["per_gpu"]
    assert held["required_bytes"] == held["weights_bytes"] + held["kv_bytes"] + held["workspace_bytes"]
    assert found["fits"] == (held["required_bytes"] <= held["available_bytes"])
    assert found["kv"]["batch"] == 2


def test_several_gpus(run):
    found = asked(run, LLAMA, "--gpu", "rtx-4090", "--gpus", "2", "--context", "32k")
    assert found["per_gpu"]["kv_bytes"] * 2 == found["kv"]["total_bytes"]
    assert found["per_gpu"]["weights_bytes"] < 0.51 * found["weights_bytes"]
    assert "on 2 x rtx-4090, each" in words(run("plan", LLAMA, "--gpu", "rtx-4090", "--gpus", "2").stdout)


def test_a_card_that_is_known_by_its_memory_only(run):
    found = asked(run, LLAMA, "--gpu-memory", "24GiB", "--context", "8k")
    assert found["gpu"]["memory_bytes"] == 24 * 2**30
    assert found["bounds"]["decode_seconds"] is None
    assert "no bound on speed" in words(run("plan", LLAMA, "--gpu-memory", "24GiB", "--context", "8k").stdout)


def test_no_bound_on_the_context(run):
    assert asked(run, MISTRAL, "--gpu", "h100")["max_context"] is None
    assert "largest context at batch 1: no bound" in words(run("plan", MISTRAL, "--gpu", "h100").stdout)


def test_a_context_beyond_the_advertised_one_is_a_finding(run):
    result = run("plan", MISTRAL, "--gpu", "h100", "--context", "64k")
    assert result.exit_code == 0
    assert "context-beyond-advertised" in result.stdout


def test_a_model_without_a_context_has_to_be_told_one(run, config):  # noqa: F811
    folder = config(MAMBA)
    result = run("plan", folder, "--gpu", "h100")
    assert result.exit_code == 2
    assert "context is missing" in result.stderr
    assert asked(run, folder, "--gpu", "h100", "--context", "4k")["max_context"] is None


def test_the_page_is_written(run, tmp_path):
    out = tmp_path / "plan.html"
    result = run("plan", QWEN3, QWEN35, MISTRAL, "--html", out)
    assert (result.exit_code, f"page: {out}" in result.stdout) == (0, True)
    (carried,) = re.findall(r'id="plan-data">(.*?)</script>', out.read_text(), re.DOTALL)
    assert [model["name"] for model in json.loads(carried)["models"]] == [QWEN3.stem, QWEN35.stem, MISTRAL.stem]


def test_the_page_starts_with_what_was_asked(run, tmp_path):
    out = tmp_path / "plan.html"
    run(
        "plan",
        LLAMA,
        "--gpu-memory",
        "80GB",
        "--context",
        "100k",
        "--batch",
        "4",
        "--weights",
        "int4",
        "--kv",
        "fp8",
        "--html",
        out,
    )
    (carried,) = re.findall(r'id="plan-data">(.*?)</script>', out.read_text(), re.DOTALL)
    data = json.loads(carried)
    start = data["start"]
    assert (start["context"], start["batch"], start["weights"], start["kv"]) == (102400, 4, "int4", "fp8")
    assert data["gpus"][start["gpu"]]["memory"] == 80 * 10**9


def test_a_pattern_on_the_full_layers(run):
    """Qwen3-30B-A3B, 48 layers of 4 KV heads of 128: 2 KiB a token and layer; a ring of 4,096 keys and 4 sinks elsewhere."""
    found = asked(run, QWEN3, *AS_PUBLISHED, "--pattern", "window(4096) | sinks(4)", "--full-layers", "3,7")
    assert found["name"].endswith("through window(4096) | sinks(4) in 46 of 48 layers")
    assert found["kv"]["growing_bytes_per_token"] == 2 * 2048
    assert found["kv"]["total_bytes"] == 2048 * (2 * 262144 + 46 * 4100)
    assert found["fits"]


def test_a_pattern_is_on_the_page_too(run, tmp_path):
    page = tmp_path / "plan.html"
    assert run("plan", QWEN3, LLAMA, "--pattern", "window(512)", "--html", page).exit_code == 0
    assert page.read_text().count("through window(512) in") >= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--full-layers", "3"], "no --pattern was given"),
        (["--pattern", "window(8)", "--full-layers", "99"], r"names layers \[99\], but .* has no full attention there"),
        (["--pattern", "window(8)", "--full-layers", "a"], "must be layer numbers with commas between them"),
        (
            ["--pattern", "window(8)", "--full-layers", ",".join(map(str, range(48)))],
            "no layer with full attention left",
        ),
        (["--pattern", "window(8)", "--accounting", "vllm"], "it knows no --pattern"),
        (["--pattern", "windw(8)"], "unknown term 'windw'"),
        (["--pattern", "hashed(2, 8) | topblocks(3)"], "cannot both choose"),
    ],
)
def test_patterns_that_cannot_be_planned(run, options, message):
    result = run("plan", QWEN3, *options)
    assert result.exit_code == 2
    assert re.search(message, words(result.stderr))
