"""The tables of docs/quality.md."""

from collections import defaultdict
from statistics import mean

import numpy as np
from fact_variants import VARIANTS
from quality_results import (
    LETTERS,
    MISSING,
    PLACES,
    SEEDS,
    TASKS,
    Group,
    Run,
    dense_at_worst,
    dense_share,
    kept,
    meet_the_goal,
    seeds_of,
    seeds_that_meet_it,
    values_of,
)
from recall import TESTED

from sparse_attn.evals.tasks.token_level import IGNORED, multi_query_recall

PUBLISHED = {"window 16": (16, 0.15), "window 64": (64, 0.51), "window 256": (256, 0.80), "full": (None, 1.0)}


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


def long_table(found: Group) -> list[str]:
    head = " | ".join(TASKS.values())
    lines = [
        f"| variant | pattern at 16,384 tokens | FLOPs of dense | facts | {head} | seeds, runs |",
        "|---" * (5 + len(TASKS)) + "|",
    ]
    for name, runs in found.items():
        if name == "base":
            continue
        pattern = f"`{runs[0]['pattern']}`".replace("|", "\\|")
        cost = f"1/{1 / dense_share(runs):.1f}" if name != "dense" else "1"
        for place, words in PLACES.items():
            cells = " | ".join(cell(values_of(runs, f"{task}, {place}")) for task in TASKS)
            first = f"{name} | {pattern} | {cost}" if place == "far" else " | | "
            last = f"{seeds_of(runs)}, {len(runs)}" if place == "far" else ""
            lines.append(f"| {first} | {words} | {cells} | {last} |")
    return lines


def missing_table(groups: list[Group]) -> list[str]:
    """Every variant of the comparison against every recipe: how many of three seeds there are."""
    lines = ["| variant | " + " | ".join(LETTERS[: len(groups)]) + " |", "|---" * (1 + len(groups)) + "|"]
    for name in VARIANTS:
        cells = [f"{seeds_of(found[name])} of {SEEDS}" if name in found else MISSING for found in groups]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def selection_table(rows: list[Run]) -> list[str]:
    """Of the mass outside the window, how much the chosen blocks hold, by layer."""
    layers = len(rows[0]["layers"])
    lines = [
        f"| variant | blocks chosen by | {' | '.join(f'layer {n + 1}' for n in range(layers))} | four hops answered |",
        "|---" * (layers + 3) + "|",
    ]
    for row in rows:
        for key, words in (("own", "the layer's selector"), ("mean", "means of keys"), ("best", "the mass itself")):
            shares = " | ".join(f"{layer[key]:.3f}" for layer in row["layers"])
            name = row["variant"].removeprefix("window + TopBlocks, ") if key == "own" else ""
            answered = f"{row['accuracy'][key]:.3f}" if key in row["accuracy"] else "not run"
            lines.append(f"| {name} | {words} | {shares} | {answered} |")
    return lines


def listed(shares: dict[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f}% ({TASKS[task]})" for task, share in shares.items())


def verdicts(groups: list[Group]) -> list[str]:
    lines, met = [], []
    for letter, found in zip(LETTERS, groups, strict=False):
        worst = dense_at_worst(found)
        if worst is None:
            continue
        reached = f"- Recipe {letter}: dense attention reaches {worst:.3f} on its weakest task"
        if worst <= 0.95:
            lines.append(f"{reached}, where above 0.95 was asked for: shares of it say little.")
            continue
        lines.append(f"{reached}.")
        for name, runs in found.items():
            shares = {place: kept(found, name, place) for place in PLACES}
            if name in ("base", "dense") or not shares["far"]:
                continue
            lines.append(f"    - {name}, 1/{1 / dense_share(runs):.1f} of the FLOPs, keeps of dense accuracy:")
            lines += [f"      {words}: {listed(shares[place])}." for place, words in PLACES.items()]
        for name in meet_the_goal(found):
            alone, seeds = seeds_that_meet_it(found, name)
            met.append(f"{name} (recipe {letter}, mean of {seeds} of {SEEDS} seeds; by itself {alone} of {seeds})")
    lines += [
        f"- Goal, at least 99% of dense accuracy on every task at no more than a sixth of the FLOPs: "
        f"{'met by ' + ', '.join(met) if met else 'met by no run'}.",
    ]
    return lines
