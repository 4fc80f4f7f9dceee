"""The experiments' own parts: the fast selector is the selector, the price of attention is what a hand counts, the page is
that of the results."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_attn.models import LanguageModel
from sparse_attn.nn import BlockSelector, SparseSelfAttention
from sparse_attn.patterns import parse

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _experiments_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))


def test_fast_selector_gives_what_the_selector_gives() -> None:
    selector = BlockSelector(12, 2, 2, 8, parse("window(16) | topblocks(3, block=8)")).double()
    torch.nn.init.normal_(selector.pooling)
    x = torch.randn(2, 61, 12, dtype=torch.float64)
    q, k, v = (torch.randn(2, 61, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    leaves = [q, k, v, *selector.parameters()]

    def run() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        coarse, selected = selector(x, q, *selector.compress(k, v))
        weight = torch.linspace(-1, 1, coarse.numel(), dtype=torch.float64).view_as(coarse)
        return coarse, selected, list(torch.autograd.grad((coarse * weight).sum(), leaves))

    expected = run()
    importlib.import_module("coarse_selector").faster(torch.nn.ModuleList([selector]))
    found = run()
    assert type(selector).__name__ == "CoarseSelector"
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[2], expected[2])


def test_selectors_are_taught_where_the_model_is_asked_while_it_trains() -> None:
    coarse = importlib.import_module("coarse_selector")
    pattern = parse("window(6) | topblocks(2, block=4)")
    layer = SparseSelfAttention(16, 2, pattern, rope_theta=None)
    model = LanguageModel(40, 16, [layer])
    lesson = coarse.teach(model, coarse.faster(model))
    tokens, at = torch.randint(40, (2, 30)), torch.tensor([[20, 29], [17, 28]])
    model(tokens, at)
    assert torch.equal(layer.selector.taught_at, at)
    lesson().backward()
    assert layer.selector.pooling.grad.abs().max() > 0
    model.eval()
    model(tokens, at)
    with pytest.raises(ValueError, match="lesson: nothing to take"):
        lesson()


def test_price_of_attention_is_what_a_hand_counts() -> None:
    flops = importlib.import_module("attention_cost").flops
    # 8 queries: 1 + 2 + 6 * 3 pairs of a window of 3, 4 * 10 FLOPs each, 2 heads.
    assert flops(parse("window(3)"), 8, 2, 2, 10) == 4 * 10 * 2 * 21
    # Two extra keys a query; pooling 6 * 10 a key and KV head; 2 anchors read 2 blocks.
    assert (
        flops(parse("window(3) | anchors(2, block=4)"), 8, 2, 1, 10) == 4 * 10 * 2 * (21 + 16) + 60 * 8 + 4 * 10 * 2 * 2
    )
    # Up to 4 chosen keys more, no more than there are: 1, 2, 3, 4, 5, 6, 7, 7; then half of
    # 8 x 2 scores of blocks in 2 heads, and means of 8 keys in 2.
    static = 4 * 10 * 2 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 7)
    assert flops(parse("window(3) | topblocks(1, block=4)"), 8, 2, 2, 10) == static + 20 * 2 * 8 + 10 * 2 * 8


def test_price_of_trees_hashing_and_routers_is_what_a_hand_counts() -> None:
    flops = importlib.import_module("attention_cost").flops
    # 3 blocks of 4 and 1 of 2 tokens, nodes of 2: 12 tokens and 2 x 3 summaries are read by 3 queries; 2 x 2 x 3 extra keys.
    tree = flops(parse("window(1) | anchortree(2, fanout=2, r=3, block=4)"), 14, 2, 1, 10)
    assert tree == 4 * 10 * 2 * (14 + 14 * 12) + 6 * 10 * 3 * (12 + 6)
    # A query sees up to 3 rounds of 4 keys more, no more than there are; 3 directions a round for queries and keys.
    hashed = flops(parse("window(1) | hashed(3, 6, chunk=2)"), 20, 2, 1, 10)
    assert hashed == 4 * 10 * 2 * sum(min(i + 1, 1 + 12) for i in range(20)) + 3 * 2 * 10 * 3 * 20 * (2 + 1)
    # Pairs that were spent, in place of the most; 3 options scored from 20 channels for each KV head.
    pattern = parse("window(3) | topblocks(1, block=4)")
    less = flops(pattern, 8, 2, 2, 10) - flops(pattern, 8, 2, 2, 10, pairs=21, options=3)
    assert less == 4 * 10 * 2 * (35 - 21) - 2 * 20 * 2 * 3 * 8


def test_every_variant_costs_at_most_a_sixth_of_dense_attention() -> None:
    variants = importlib.import_module("fact_variants")
    share = importlib.import_module("attention_cost").share
    for name, text in variants.VARIANTS.items():
        pattern = parse(variants.pattern_at(text, variants.LONGEST))
        options = 3 if name in variants.ROUTED else 0
        cost = share(pattern, variants.LONGEST, 6, 6, 64, gated=name in variants.GATED, options=options)
        assert (cost == 1.0) if name == "dense" else (cost <= 1 / 6), name


@pytest.mark.parametrize("name", ["window + AnchorTree", "window + Router", "window + Hashed"])
def test_variants_train_over_growing_lengths(name: str) -> None:
    long_facts, variants = (importlib.import_module(module) for module in ("long_facts", "fact_variants"))
    sizes, text = variants.Sizes(True), variants.VARIANTS[name]
    base = long_facts.model_of("dense", "full()", 0, sizes)
    tests = {name: batch for name, batch in long_facts.tests_of(256, 0.01, "cpu").items() if "far" in name}
    stages = [(96, 2, 2), (256, 2, 2)]
    line = long_facts.extended(base, name, text, 0, stages, sizes, 1e-3, None, tests, "cpu", False)
    assert [len(losses) for losses in line["losses"]] == [1, 1]
    assert set(line["tests"]) == set(tests)
    line = long_facts.priced(name, variants.pattern_at(text, 256), 256, sizes, line)
    if name == "window + Router":
        assert line["share_of_dense"] < line["most_of_dense"]
        assert sum(line["spent"]["decided"]) == pytest.approx(1, abs=1e-3)


def test_what_routers_spent_is_counted_from_what_they_decided() -> None:
    variants, long_facts = (importlib.import_module(module) for module in ("fact_variants", "long_facts"))
    spending = importlib.import_module("routed_spending").spending
    pattern = "window(16) | topblocks(4, block=16)"
    model = long_facts.model_of("window + Router", pattern, 0, variants.Sizes(True))
    tests = {"four_hops, far": long_facts.tests_of(256, 0.01, "cpu")["four_hops, far"]}
    for option, kept in enumerate(("window(16)", None, "window(16) | topblocks(4, block=16)")):
        for block in model.blocks:
            torch.nn.init.zeros_(block.mixer.router.score.weight)
            block.mixer.router.score.bias.data = torch.eye(3)[option].repeat(2)
        spent = spending(model, tests, None)
        assert spent["options"] == [0, 1, 4]
        assert spent["decided"] == spent["decided_when_asked"] == torch.eye(3)[option].tolist()
        if option == 0:
            assert spent["pairs"] == parse(kept).pairs(256)
    # Whole blocks before the query's own that its window does not hold whole: all of them, up to four.
    seen = [{j for b in range(i // 16) for j in range(16 * b, 16 * b + 16)} for i in range(256)]
    most = [
        len({*range(max(0, i - 15), i + 1)}) + min(64, len(own - {*range(i - 15, i + 1)})) for i, own in enumerate(seen)
    ]
    assert sum(most) - 16 * 256 < spent["pairs"] <= sum(most)


def test_other_pages_say_what_the_results_say() -> None:
    """`python experiments/quality_page.py` writes them anew."""
    results, summary = (importlib.import_module(module) for module in ("quality_results", "quality_summary"))
    for path, text in summary.told(results.by_recipe(results.read("long_facts.jsonl"))).items():
        assert path.read_text() == text, path


def test_sentences_follow_the_results() -> None:
    """A third seed, worse than the others, of a variant that met the goal; and variants that were not run before."""
    results, prose, tables, summary = (
        importlib.import_module(f"quality_{module}") for module in ("results", "prose", "tables", "summary")
    )
    names = ("dense", "window", prose.ANCHORS, prose.TAUGHT)
    others = (prose.TREE, prose.ROUTER, prose.HASHED)
    runs = [run for run in results.read("long_facts.jsonl") if run["seed"] < 2 and run["variant"] not in others]
    last = {run["variant"]: run for run in runs if run.get("first") and run["variant"] in names}
    third = [dict(last[name], seed=7) for name in names]
    third[-1]["tests"] = {test: value - 0.3 for test, value in third[-1]["tests"].items()}
    tree = dict(last[prose.ANCHORS], variant=prose.TREE, pattern="window(1024) | anchortree(4, r=16)")
    spent = {"options": [0, 8, 32], "decided": [0.5, 0.25, 0.25], "decided_when_asked": [0.0, 0.125, 0.875]}
    routed = dict(third[-1], variant=prose.ROUTER, spent=spent, share_of_dense=0.1, most_of_dense=0.2)
    before, after = results.by_recipe(runs), results.by_recipe([*runs, *third, tree, routed])
    assert prose.TAUGHT in results.meet_the_goal(before[-1])
    assert results.meet_the_goal(after[-1]) == []
    assert prose.margin(after) == []
    assert "met by no run" in tables.verdicts(after)[-1]
    assert "Over three seeds" in summary.in_readme(after)
    assert summary.in_readme(after).split("keep ")[1] != summary.in_readme(before).split("keep ")[1]
    assert "a tree of 256 keys, trained for it from short documents on (one seed), answers 96%" in summary.in_anchors(
        after
    )
    assert (
        "spent 10.0% of dense FLOPs, scoring blocks included, where reading all chosen blocks would cost 20.0%"
        in prose.routers(after)[0]
    )
    assert "50.0% 0 blocks, 25.0% 8 blocks" in prose.routers(after)[0]
    table = "\n".join(tables.missing_table(after))
    assert "| window + Router | not run | not run | not run | not run | 1 of 3 |" in table
    assert "| window + Hashed | not run | not run | not run | not run | not run |" in table


def test_a_variant_is_compared_with_dense_on_the_seeds_that_both_ran() -> None:
    results, prose = (importlib.import_module(f"quality_{module}") for module in ("results", "prose"))
    answers = {("dense", 0): 0.5, ("dense", 1): 0.9, (prose.TREE, 0): 0.4, (prose.TREE, 2): 0.1, (prose.HASHED, 1): 0.9}
    found = {name: [] for name, _ in answers}
    for (name, seed), answered in answers.items():
        tests = {f"{task}, {place}": answered for task in results.TASKS for place in results.PLACES}
        found[name].append({"variant": name, "seed": seed, "tests": tests})
    assert results.kept(found, prose.TREE, "far")["recall"] == pytest.approx(0.4 / 0.5)
    n = results.questions("recall", "far")
    assert results.error_of_kept(found, prose.TREE, "recall", "far") == pytest.approx(
        (0.4 * 0.6 / n + 0.5 * 0.5 / n) ** 0.5 / 0.5
    )
    tree, hashed = prose.trees_and_hashing([found])
    assert "(recipe A, two seeds) keeps 80% of dense accuracy on facts more than 10,000 tokens away" in tree
    assert "seed by seed, it answers 10% to 40% of far single recall" in tree
    assert "(recipe A, one seed) keeps 100%" in hashed


def test_seeds_that_meet_the_goal_by_themselves_are_counted() -> None:
    results = importlib.import_module("quality_results")
    found: dict[str, list[dict[str, object]]] = {"dense": [], "window + Router": []}
    for seed, kept in ((0, 1.0), (1, 0.985), (2, 1.0)):
        for name, answered in (("dense", 0.98), ("window + Router", 0.98 * kept)):
            tests = {f"{task}, {place}": answered for task in results.TASKS for place in results.PLACES}
            found[name].append({"variant": name, "seed": seed, "tests": tests, "share_of_dense": 0.1})
    assert results.meet_the_goal(found) == ["window + Router"]
    assert results.seeds_that_meet_it(found, "window + Router") == (2, 3)
    found["dense"].pop()
    assert results.seeds_that_meet_it(found, "window + Router") == (1, 2)


@pytest.mark.slow
def test_page_is_that_of_the_results() -> None:
    page = subprocess.run([sys.executable, "experiments/quality_page.py", "--check"], cwd=ROOT, check=False, env=None)
    assert page.returncode == 0
