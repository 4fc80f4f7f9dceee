"""`sparse-attn show`: the figures are the pattern's, the picture is drawn, and torch stays away."""

import json
import subprocess
import sys

import pytest

from sparse_attn.patterns import parse

TEXT = "window(64) | sinks(4) | strided(32)"


def test_json_holds_the_patterns_own_figures(run):
    shown = json.loads(run("show", TEXT, "--length", 512, "--layers", 3, "--json").stdout)
    pattern = parse(TEXT)
    assert parse(shown["pattern"]) == pattern
    assert shown["kept_pairs"] == pattern.pairs(512) == pattern.mask(512).sum()
    assert shown["dense_pairs"] == 512 * 513 // 2
    assert shown["kept_share"] * shown["times_cheaper"] == pytest.approx(1)
    assert shown["reach"] == {"layers": 3, "tokens": None, "layers_to_any": pattern.reach(3).layers_to_any}


@pytest.mark.parametrize("bidirectional", [[], ["--bidirectional"]])
def test_fewer_queries_than_keys(run, bidirectional):
    shown = json.loads(run("show", TEXT, "--length", 300, "--queries", 20, *bidirectional, "--json").stdout)
    mask = parse(TEXT).mask(20, 300, causal=not bidirectional)
    assert (shown["queries"], shown["keys"], shown["kept_pairs"]) == (20, 300, mask.sum())


def test_the_terminal_gets_picture_figures_and_words(run):
    out = run("show", TEXT, "--length", 512).stdout
    assert "keys ─▶" in out
    assert "queries" in out
    assert "█" in out
    assert "35,450 of 131,328" in out
    assert "3.7 times less" in out
    assert "reaches any later one within" in out


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("window(30)", "over 30 layers a query learns of at most 871 tokens, its own included"),
        (
            "window(30) | sinks(4)",
            "sinks(4) can be seen from any distance; over 30 layers a query learns of at most 871",
        ),
        ("full()", "reaches any later one within 1 layer, at every length"),
        ("window(4) | random(2)", "no number of layers brings every key to every query"),
    ],
)
def test_reach_in_words(run, pattern, words):
    assert words in " ".join(run("show", pattern).stdout.split())


def test_a_million_tokens(run):
    shown = json.loads(run("show", "window(4096) | sinks(4)", "--length", 1 << 20, "--json").stdout)
    assert shown["kept_pairs"] == parse("window(4096) | sinks(4)").pairs(1 << 20)
    assert "█" in run("show", "window(65536)", "--length", 1 << 20).stdout


def test_the_picture_goes_to_a_file(run, tmp_path):
    result = run("show", TEXT, "--out", tmp_path / "pattern.png", "--json")
    assert (tmp_path / "pattern.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(result.stdout)["picture"] == str(tmp_path / "pattern.png")
    assert [path.name for path in tmp_path.iterdir()] == ["pattern.png"]


@pytest.mark.parametrize(
    "arguments",
    [["show", TEXT], ["show", TEXT, "--json"], ["--help"], ["show", "--help"], ["generate", "--help"], ["demo", "--help"],
     ["--version"], ["show", "nonsense"]],
    ids=" ".join,
)  # fmt: skip
def test_torch_is_not_loaded(arguments):
    program = f"""
import sys
sys.argv = ["sparse-attn", *{arguments!r}]
from sparse_attn.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {{"torch", "transformers", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
