"""The pictures of docs/quality.md."""

from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from fact_variants import VARIANTS
from quality_results import LETTERS, TASKS, Run, values_of
from quality_tables import PUBLISHED, within_reach


def picture(groups: list[dict[str, list[Run]]], path: Path) -> None:
    across = min(3, len(groups))
    down = -(-len(groups) // across)
    figure, axes = plt.subplots(down, across, figsize=(4.2 * across, 3.6 * down), sharey=True, squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    colours = {name: f"C{index}" for index, name in enumerate(VARIANTS)}
    for axis, letter, found in zip(axes.flat, LETTERS, groups, strict=False):
        names = [name for name in found if name != "base"]
        for number, name in enumerate(names):
            rows = [values_of(found[name], f"{task}, far") for task in TASKS]
            x = [index + (number - (len(names) - 1) / 2) * 0.8 / len(names) for index in range(len(TASKS))]
            axis.bar(x, [mean(row) if row else 0 for row in rows], 0.75 / len(names), label=name, color=colours[name])
            for at, row in zip(x, rows, strict=True):
                axis.plot([at] * len(row), row, "k.", markersize=3)
        axis.set_xticks(range(len(TASKS)), list(TASKS.values()), fontsize=7)
        axis.set_title(f"recipe {letter}", fontsize=10)
        axis.set_ylim(0, 1.02)
        axis.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=3, frameon=False)
    for row in axes:
        row[0].set_ylabel("accuracy, facts > 10,000 tokens away", fontsize=8)
    figure.tight_layout()
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
