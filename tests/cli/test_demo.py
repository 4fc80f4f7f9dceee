"""`sparse-attn demo`, whole but with a tiny random model; and once, slowly, with the real one."""

import json
import os

import pytest

from sparse_attn.evals.comparison import Row
from sparse_attn.patterns import parse

from ..tiny_model import tiny_model, tiny_tokenizer

ROWS = (
    Row("dense", None),
    Row("window", "window(64)"),
    Row("mapping", "window(64) | sinks(4) | strided(16)", (1, 3)),
)


@pytest.fixture
def small(monkeypatch):
    """The demo's command over a tiny model, with fewer rows, lengths, depths and answer tokens."""
    demo = __import__("sparse_attn.cli.demo", fromlist=["demo"])
    monkeypatch.setattr(demo, "load", lambda name: (tiny_model(), tiny_tokenizer()))
    for name, value in {"ROWS": ROWS, "LENGTHS": (240, 300), "DEPTHS": (0.2, 0.8)}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr("sparse_attn.evals.comparison.ANSWER_TOKENS", 3)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_json_and_report(run, small, in_folder):
    result = run("demo", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert [(cell["row"], cell["length"]) for cell in found["cells"]] == [
        (row.name, length) for length in (240, 300) for row in ROWS
    ]
    for cell in found["cells"]:
        row = next(row for row in ROWS if row.name == cell["row"])
        pairs = sum(parse(pattern or "full()").pairs(cell["length"]) for pattern in row.patterns(4))
        assert cell["kept_pairs"] == pairs
        assert cell["dense_pairs"] == 4 * parse("full()").pairs(cell["length"])
        assert 0 < cell["cache_bytes"] <= cell["dense_cache_bytes"] == 4 * 2 * 2 * 8 * 4 * cell["length"]
        assert 200 < cell["perplexity"] < 350  # of 260 tokens, guessed at random
        assert cell["prefill_seconds"] > 0
        assert [needle["depth"] for needle in cell["needles"]] == [0.2, 0.8]
    assert "300 tokens, window:" in result.stderr
    assert os.listdir(in_folder) == ["sparse-attn-report.html"]
    report = (in_folder / "sparse-attn-report.html").read_text(encoding="utf-8")
    assert f"{found['cells'][0]['kept_pairs']:,}" in report
    assert report.endswith("</html>")


def test_the_auto_row_is_what_sparsify_does():
    from sparse_attn.evals.demo import AUTO
    from sparse_attn.patterns.covering import auto

    assert repr(auto()) == AUTO


def test_tables_for_people(run, small, in_folder):
    result = run("demo", "--length", 240, "--out", "mine.html")
    assert "240 tokens" in result.stdout
    assert "300 tokens" not in result.stdout
    assert "window(64) in all 4 layers" in result.stdout
    assert "report: mine.html" in result.stdout
    assert os.listdir(in_folder) == ["mine.html"]


def test_rows_are_told_apart(run, small, in_folder):
    cells = json.loads(run("demo", "--length", 240, "--json").stdout)["cells"]
    assert len({cell["perplexity"] for cell in cells}) == 3


@pytest.mark.parametrize(
    ("length", "sentence"),
    [(2000, "exceed the model's context of 1,024 tokens"), (50, "length must leave room for text")],
)
def test_lengths_that_cannot_be_read(run, small, in_folder, length, sentence):
    result = run("demo", "--length", length)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert os.listdir(in_folder) == []


def test_an_interrupted_run_writes_nothing(run, small, in_folder, monkeypatch):
    def interrupt(self, tokens, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparse_attn.hf.measure.HfReader.read", interrupt)
    result = run("demo")
    assert (result.exit_code, result.stdout) == (130, "")
    assert os.listdir(in_folder) == []


@pytest.mark.slow
def test_the_real_model_finds_its_needles(run, in_folder):
    result = run("demo", "--length", 1024, "--json")
    cells = {cell["row"]: cell for cell in json.loads(result.stdout)["cells"]}
    assert all(needle["found"] for needle in cells["dense"]["needles"])
    assert cells["dense"]["perplexity"] < 50
    assert cells["window"]["perplexity"] > cells["window + sinks"]["perplexity"] > cells["dense"]["perplexity"]
