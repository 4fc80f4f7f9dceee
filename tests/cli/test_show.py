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


@pytest.mark.parametrize(
    ("text", "most"),
    [("window(16) | topblocks(2, block=8)", 16), ("sinks(2) | hashed(2, 4, chunk=5)", 20), ("coverblocks(0.9)", None)],
)
def test_what_content_chooses_is_said_to_be_a_bound(run, text, most):
    shown = json.loads(run("show", text, "--length", 128, "--json").stdout)
    assert shown["kept_pairs_are"] == "at most"
    assert shown["chosen_keys_per_query"] == most
    static = [term for term in parse(text).terms if repr(term).startswith(("window", "sinks"))]
    kept = static[0].mask(128).sum(1) if static else [0] * 128
    every = range(1, 129)
    bounds = [seen if most is None else min(seen, n + most) for seen, n in zip(every, kept, strict=True)]
    assert shown["kept_pairs"] == sum(bounds)
    words = " ".join(run("show", text, "--length", 128).stdout.split())
    assert f"kept pairs at most {sum(bounds):,} of 8,256" in words
    assert "by content: counted above, not in the picture" in words
    if most is None:
        assert "at most that of dense attention, and that of choosing" in words
    else:
        assert f"at least {8256 / sum(bounds):,.1f} times less than dense attention, without that of choosing" in words
    exact = json.loads(run("show", TEXT, "--json").stdout)
    assert (exact["kept_pairs_are"], exact["chosen_keys_per_query"]) == ("exact", 0)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (
            "window(30) | topblocks(4)",
            "topblocks(4) may show keys from any distance, but which, the content decides; without it, over 30 layers a query "
            "learns of at most 871 tokens",
        ),
        ("hashed(2, 8)", "the content decides: no number of layers is sure to bring every key to every query"),
        ("window(30) | topblocks(4).within(window(20))", "over 30 layers a query learns of at most 871 tokens"),
        ("window(20) | strided(16) | topblocks(2)", "reaches any later one within 2 layers"),
    ],
)
def test_reach_does_not_count_on_what_content_chooses(run, pattern, words):
    assert words in " ".join(run("show", pattern).stdout.split())


@pytest.mark.parametrize(
    ("text", "causal"),
    [
        ("topblocks(2) | hashed(2, 8)", True),
        ("topblocks(2) | topblocks(3)", True),
        ("topblocks(2) | coverblocks(0.9)", True),
        ("hashed(2, 8) | hashed(2, 4)", True),
        ("anchors(4) | anchortree(2)", True),
        ("hashed(2, 8) | window(4)", False),
        ("coverblocks(0.9) | window(4)", False),
        ("verticalslash(0.9)", False),
    ],
)
def test_what_attention_refuses_is_refused_in_the_same_words(run, text, causal):
    import torch

    from sparse_attn import attention

    q = torch.randn(1, 8, 1, 4)
    with pytest.raises((ValueError, NotImplementedError)) as refused:
        attention(q, q, q, parse(text), causal=causal)
    shown = run("show", text, *[] if causal else ["--bidirectional"])
    assert shown.exit_code == 2
    assert f"error: {refused.value}" in " ".join(shown.stderr.split())


def test_a_tree_is_causal_here_as_in_its_layer(run):
    from sparse_attn.nn import SparseSelfAttention

    with pytest.raises(NotImplementedError) as refused:
        SparseSelfAttention(8, 1, parse("anchortree(2)"), causal=False)
    assert str(refused.value) in " ".join(run("show", "anchortree(2)", "--bidirectional").stderr.split())
    run("show", "anchors(4) | window(4)", "--bidirectional")


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
