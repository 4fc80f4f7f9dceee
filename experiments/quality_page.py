"""Write docs/quality.md and its pictures from the results of the experiments.

    python experiments/quality_page.py [--check]

Every number of the page comes from experiments/results/*.jsonl; a cell that was not run is shown as missing.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from recall import TESTED

from sparse_attn.evals.tasks.token_level import IGNORED, multi_query_recall

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
PUBLISHED = {"window 16": (16, 0.15), "window 64": (64, 0.51), "window 256": (256, 0.80), "full": (None, 1.0)}
VARIANTS = (
    "dense", "window", "window + anchors", "window + AnchorTree", "window + TopBlocks", "window + TopBlocks, gated",
    "window + TopBlocks + anchors", "window + Router", "window + Hashed",
)  # fmt: skip
TASKS = {"recall": "single recall", "multi_query": "16-query recall", "two_hops": "two hops", "four_hops": "four hops"}
MISSING = "not run"

Run = dict[str, Any]


def read(name: str) -> list[Run]:
    path = RESULTS / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def within_reach(window: int | None) -> float:
    """The share of the tested questions whose fact one layer with this window reaches: counted on the data alone."""
    shares = []
    for tokens, pairs in TESTED:
        batch = multi_query_recall(200, tokens, pairs, seed=1)
        found = []
        for row, labels in zip(batch.inputs, batch.labels, strict=True):
            value_at = {int(key): 2 * index + 1 for index, key in enumerate(row[: 2 * pairs : 2])}
            for position in np.flatnonzero(labels != IGNORED):
                distance = int(position) - value_at[int(row[position])]
                found.append(window is None or distance <= window)
        shares.append(mean(found))
    return mean(shares)


def cell(values: list[float]) -> str:
    if not values:
        return MISSING
    spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def by_variant(runs: list[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run["variant"] != "base":
            found[run["variant"]].append(run)
    return found


def order(found: dict[str, list[Run]]) -> list[str]:
    return [*VARIANTS, *(name for name in found if name not in VARIANTS)]


def values_of(runs: list[Run], test: str) -> list[float]:
    return [run["tests"][test] for run in runs if test in run["tests"]]


def recall_table(runs: list[Run]) -> list[str]:
    lines = [
        "| attention | published | within one layer's reach | ours: mean (least-most) | runs |",
        "|---|---|---|---|---|",
    ]
    for name, (window, published) in PUBLISHED.items():
        found: dict[float, list[float]] = defaultdict(list)
        for run in runs:
            if run["pattern"] == name:
                found[run["rate"]].append(run["accuracy"])
        best = max(found.values(), key=mean, default=[])
        rate = next((rate for rate, values in found.items() if values is best), None)
        count = (
            f"{len(best)} seed{'s' * (len(best) != 1)} at rate {rate:g}, best of {len(found)} rates"
            if best
            else MISSING
        )
        lines.append(f"| {name} | {published:.2f} | {within_reach(window):.3f} | {cell(best)} | {count} |")
    return lines


def long_table(found: dict[str, list[Run]], place: str) -> list[str]:
    head = " | ".join(TASKS.values())
    lines = [f"| variant | pattern | FLOPs of dense | {head} | seeds |", "|---" * (4 + len(TASKS)) + "|"]
    for name in order(found):
        runs = found.get(name, [])
        pattern = f"`{runs[0]['pattern']}`".replace("|", "\\|") if runs else ""
        cost = f"1/{1 / runs[0]['share_of_dense']:.1f}" if runs else ""
        cells = " | ".join(cell(values_of(runs, f"{task}, {place}")) for task in TASKS)
        lines.append(f"| {name} | {pattern} | {cost} | {cells} | {len(runs) or ''} |")
    return lines


def kept(found: dict[str, list[Run]], name: str, place: str) -> dict[str, float]:
    """Of dense accuracy, task by task, means over seeds."""
    shares = {}
    for task in TASKS:
        ours, dense = (values_of(found.get(key, []), f"{task}, {place}") for key in (name, "dense"))
        if ours and dense and mean(dense) > 0:
            shares[task] = mean(ours) / mean(dense)
    return shares


def listed(shares: dict[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f}% ({TASKS[task]})" for task, share in shares.items())


def verdicts(found: dict[str, list[Run]]) -> list[str]:
    dense = [
        mean(values)
        for task in TASKS
        for place in ("far", "anywhere")
        if (values := values_of(found.get("dense", []), f"{task}, {place}"))
    ]
    if not dense:
        return ["- Dense attention was not run: nothing here can be compared."]
    state = "so the comparison stands" if min(dense) > 0.95 else "so the comparison says little where dense is weak"
    lines = [
        f"- Dense attention reaches {min(dense):.3f} on its weakest task (mean over seeds); above 0.95 was asked for, {state}."
    ]
    goal = "- Goal, at least 99% of dense accuracy on every task at no more than a sixth of the FLOPs:"
    met = 0
    for name in order(found):
        shares = [share for place in ("far", "anywhere") for share in kept(found, name, place).values()]
        if name != "dense" and shares and min(shares) >= 0.99 and found[name][0]["share_of_dense"] <= 1 / 6:
            met, seeds = met + 1, len(found[name])
            lines.append(
                f"{goal} met by {name}, {100 * min(shares):.1f}% on its weakest task at "
                f"1/{1 / found[name][0]['share_of_dense']:.1f}, {seeds} seed{'s' * (seeds != 1)}."
            )
    if not met:
        lines.append(f"{goal} met by no variant that was run.")
    for name, claim in (
        (
            "window + anchors",
            "a window and 64 anchors keep 97.3% of dense accuracy on multi-hop tasks at a sixth of the compute",
        ),
        ("window", "a window alone drops to 81% on questions across documents"),
    ):
        lines.append(f"- Published: {claim}. Here, of dense accuracy:")
        for place, words in (("anywhere", "facts anywhere"), ("far", "facts more than 10,000 tokens away")):
            lines.append(f"    - {words}: {listed(kept(found, name, place)) or MISSING}")
    return lines


def picture(found: dict[str, list[Run]], path: Path) -> None:
    names = [name for name in order(found) if found.get(name)]
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True)
    for axis, place, title in zip(
        axes,
        ("far", "anywhere"),
        ("facts more than 10,000 tokens away", "facts anywhere in 16,384 tokens"),
        strict=True,
    ):
        for number, name in enumerate(names):
            rows = [values_of(found[name], f"{task}, {place}") for task in TASKS]
            x = [index + (number - (len(names) - 1) / 2) * 0.8 / len(names) for index in range(len(TASKS))]
            label = f"{name} (1/{1 / found[name][0]['share_of_dense']:.1f})" if name != "dense" else name
            axis.bar(x, [mean(row) if row else 0 for row in rows], 0.75 / len(names), label=label)
            for at, row in zip(x, rows, strict=True):
                axis.plot([at] * len(row), row, "k.", markersize=3)
        axis.set_xticks(range(len(TASKS)), list(TASKS.values()))
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 1.02)
    axes[0].set_ylabel("accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def recall_picture(runs: list[Run], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(5.5, 3.2))
    for index, (name, (window, published)) in enumerate(PUBLISHED.items()):
        values = [run["accuracy"] for run in runs if run["pattern"] == name]
        axis.plot([index], [published], "o", mfc="none", color="black", label="published" if index == 0 else None)
        axis.plot(
            [index],
            [within_reach(window)],
            "_",
            color="gray",
            markersize=22,
            label="within reach" if index == 0 else None,
        )
        axis.plot([index] * len(values), values, "x", color="tab:blue", label="ours, each run" if index == 0 else None)
    axis.set_xticks(range(len(PUBLISHED)), list(PUBLISHED))
    axis.set_ylim(0, 1.05)
    axis.set_ylabel("mean accuracy of seven settings")
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def page(recall_runs: list[Run], long_runs: list[Run]) -> str:
    found = by_variant(long_runs)
    bases = [run for run in long_runs if run["variant"] == "base"]
    about = (bases or long_runs or [{}])[0]
    devices = sorted({run["device"] for run in [*recall_runs, *long_runs]})
    stages = ", ".join(
        "{} tokens x {} documents x {} steps".format(*stage.split("x")) for stage in about.get("stages", [])
    )
    missing = [name for name in VARIANTS if not found.get(name)]
    few = [f"{name} ({len(found[name])})" for name in order(found) if found.get(name) and len(found[name]) < 3]
    lines = [
        "# Quality, measured by training",
        "",
        "Written by `python experiments/quality_page.py` from `experiments/results/`; do not edit by hand.",
        f"Trained on: {', '.join(devices)}. Models are small and tasks synthetic: this says which facts a pattern can reach and",
        "use, not how well a large model writes.",
        "",
        "## The set-up, checked against outside figures",
        "",
        "Associative recall of Zoology and Based (arXiv:2312.04927, arXiv:2402.18668, figure 2): two layers (a gated convolution,",
        "then attention with one head), width 128, no positions, trained on 64 to 256 tokens with 4 to 64 pairs, tested on seven",
        "settings up to 1,024 tokens with 256 pairs; the figure is the mean of the seven. `python experiments/recall.py`.",
        "Differences: examples are drawn anew, not repeated; RMSNorm instead of LayerNorm; no dropout.",
        "",
        *recall_table(recall_runs),
        "",
        "The third column is counted on the data, without any model: the share of questions whose pair lies inside the window of",
        "the one attention layer. The published curve is this curve: it measures reach, and these models use all of it.",
        "",
        "![recall](quality_recall.svg)",
        "",
        "## Facts strewn over 16,384 tokens",
        "",
        "16 pairs a -> b of drawn names lie among filler words, in any order; the document ends with questions. A pair may be",
        "the next link of another: two hops are 8 chains of 2 pairs, four hops 4 chains of 4, and the answer is a chain's end.",
        "Guessing among the names of the document gives about 0.06 (recall), 0.13 (two hops), 0.25 (four hops).",
        f"One model for all tasks: {about.get('layers')} layers, width {about.get('width')}, {about.get('heads')} heads, MLP "
        f"{about.get('mlp')}, a convolution of 4 tokens before each attention, no positions, "
        f"{about.get('weights', 0) / 1e6:.1f}M weights.",
        "For each seed a base learns from scratch on documents of 128 tokens, where all these patterns keep every pair "
        f"({about.get('base_steps')} steps);",
        f"then every variant goes on with its own pattern, same data, steps and rates: {stages}.",
        "FLOPs are those of attention at 16,384 tokens: kept pairs, extra keys, the choice of blocks, pooling and scan",
        "(`experiments/attention_cost.py`); projections and MLP, which all variants share, are left out.",
        "`python experiments/long_facts.py`. Cells: mean over seeds (least-most).",
        "",
        "All facts more than 10,000 tokens before the questions:",
        "",
        *long_table(found, "far"),
        "",
        "Facts anywhere:",
        "",
        *long_table(found, "anywhere"),
        "",
        "![accuracy of each variant](quality_long.svg)",
        "",
        "## What it says",
        "",
        *verdicts(found),
        "",
        "## What was not run",
        "",
        f"- Variants: {', '.join(missing) if missing else 'none is missing'}.",
        f"- Fewer than three seeds: {', '.join(few) if few else 'none'}.",
        "- Lengths between 1,024 and 16,384 tokens are trained on but not tested; there is one size of model.",
        "- Outside figures of linear attention (Gated DeltaNet) were not checked.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the page is not that of the results"
    )
    args = parser.parse_args()
    plt.switch_backend("svg")
    plt.rcParams["svg.hashsalt"] = "quality"  # the same picture is the same file
    recall_runs, long_runs = read("recall.jsonl"), read("long_facts.jsonl")
    text = page(recall_runs, long_runs)
    target = ROOT / "docs" / "quality.md"
    if args.check:
        raise SystemExit(0 if target.exists() and target.read_text() == text else 1)
    target.write_text(text)
    recall_picture(recall_runs, ROOT / "docs" / "quality_recall.svg")
    picture(by_variant(long_runs), ROOT / "docs" / "quality_long.svg")


if __name__ == "__main__":
    main()
