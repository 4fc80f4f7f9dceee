"""From results to what they allow to say: scores with intervals, paired comparisons, floors and verdicts, as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from .plan import PLACES, Plan
from .results_file import Entry
from .statistics import ALPHA, Paired, mcnemar, near_chance, wilson
from .tasks import TASKS
from .verdict import Table, judge


def summarize(
    plan: Plan, entries: Sequence[Entry], *, margin: float | None = None, tasks: list[Table] | None = None
) -> Table:
    """Everything that the reports show.

    Args:
        plan: What was read.
        entries: Its results, as `run` gives them.
        margin: How much smaller a share of right answers still counts as no worse; None: no verdict is asked for.
        tasks: What the reports say of the tasks, where they are not those of text (see `token_runner.described`).

    Returns:
        `tasks`, `rows`, `cells` (by length and depth), `by_depth`, `scores` (by length, and of all lengths together, with what a
        task counts besides), `comparisons` (each row with dense, by task), `advice` (prompts and places compared with each
        other), `perplexity`, `costs`, and with a margin a `verdict`.
    """
    answers = [entry for entry in entries if entry["kind"] == "answer"]
    comparisons, verdict = _comparisons(plan, answers, margin), None
    if margin is not None:
        comparisons, verdict = judge(comparisons, margin)
    table: Table = {
        "tasks": [_task(name, plan) for name in plan.tasks if name in TASKS] if tasks is None else tasks,
        "rows": [{"name": row.name, "pattern": row.pattern, "full_layers": list(row.full_layers)} for row in plan.rows],
        "lengths": sorted(plan.lengths),
        "prompts": list(plan.prompts),
        "cells": [
            dict(zip(("task", "prompt", "row", "length", "depth"), key, strict=True)) | _score(group)
            for key, group in _grouped(answers, "task", "prompt", "row", "length", "depth")
        ],
        "scores": [
            dict(zip(("task", "prompt", "row", "length"), key, strict=True))
            | _score(group)
            | {"counts": _counts(group)}
            for key, group in [
                *_grouped(answers, "task", "prompt", "row", "length"),
                *(((*key, None), group) for key, group in _grouped(answers, "task", "prompt", "row")),
            ]
        ],
        "by_depth": [
            dict(zip(("task", "prompt", "row", "depth"), key, strict=True)) | _score(group)
            for key, group in _grouped(answers, "task", "prompt", "row", "depth")
            if key[-1] is not None
        ],
        "comparisons": comparisons,
        "advice": _prompt_advice(plan, answers) + _place_advice(plan, answers),
        "perplexity": _perplexity(plan, [entry for entry in entries if entry["kind"] == "surprise"]),
        "costs": [entry for entry in entries if entry["kind"] == "cost"],
    }
    if verdict is not None:
        table["verdict"] = verdict
    return table


def _task(name: str, plan: Plan) -> Table:
    task = TASKS[name]
    level = min(plan.difficulty, len(task.difficulties))
    return {
        "name": name,
        "summary": task.summary,
        "source": task.source,
        "difficulty": level,
        "difficulty_words": task.difficulties[level - 1],
        "has_depth": task.has_depth,
    }


def _grouped(entries: Iterable[Entry], *fields: str) -> list[tuple[tuple[Any, ...], list[Entry]]]:
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[field] for field in fields), []).append(entry)
    return list(groups.items())


def _score(group: Sequence[Entry]) -> Table:
    right, n = sum(entry["correct"] for entry in group), len(group)
    low, high = wilson(right, n)
    chance = sum(entry["chance"] for entry in group) / n
    return {
        "n": n, "right": right, "accuracy": right / n, "low": low, "high": high,
        "mean_value": sum(entry["value"] for entry in group) / n, "chance": chance,
        "floor": near_chance(right, n, chance),
    }  # fmt: skip


def _counts(group: Sequence[Entry]) -> Table:
    """What the task counted besides, such as citations of documents that do not exist, summed up."""
    counts: dict[str, int] = {}
    for entry in group:
        for name, count in entry["details"].items():
            counts[name] = counts.get(name, 0) + int(count)
    return counts


def _comparisons(plan: Plan, answers: Sequence[Entry], margin: float | None) -> list[Table]:
    base = plan.rows[0].name
    found = []
    for (task, prompt), group in _grouped(answers, "task", "prompt"):
        for row in plan.rows[1:]:
            pairs = _pairs(group, lambda entry: entry["row"], base, row.name)
            dense = _score([first for first, _ in pairs])
            compared = {"task": task, "prompt": prompt, "row": row.name, "against": base} | _paired(pairs, margin)
            compared |= {"floor": dense["floor"], "chance": dense["chance"]}
            found.append(compared | {"words": _words(compared)})
    return found


def _pairs(
    group: Iterable[Entry], side: Callable[[Entry], Hashable], first: Hashable, second: Hashable
) -> list[tuple[Entry, Entry]]:
    """Entries of the one side with the entry of the other that is the same sample otherwise."""
    sides: dict[Hashable, dict[Hashable, Entry]] = {first: {}, second: {}}
    for entry in group:
        if (at := side(entry)) in sides:
            sides[at][_sample_key(entry, first)] = entry
    return [(entry, sides[second][key]) for key, entry in sides[first].items() if key in sides[second]]


def _sample_key(entry: Entry, side: Hashable) -> Hashable:
    depth = None if isinstance(side, float) else entry["depth"]  # places are compared across depths
    return entry["length"], entry["difficulty"], depth, entry["number"]


def _paired(pairs: Sequence[tuple[Entry, Entry]], margin: float | None) -> Table:
    worse = sum(first["correct"] and not second["correct"] for first, second in pairs)
    better = sum(second["correct"] and not first["correct"] for first, second in pairs)
    paired = Paired(len(pairs), worse, better)
    table: Table = {
        "n": paired.n, "worse": worse, "better": better, "difference": paired.difference,
        "first_right": sum(first["correct"] for first, _ in pairs),
        "second_right": sum(second["correct"] for _, second in pairs),
        "p": mcnemar(worse, better),
        "detectable_margin": paired.detectable(),
    }  # fmt: skip
    if margin is not None:
        table |= {"margin": margin, "p_exceeds": paired.p_exceeds(margin), "p_within": paired.p_within(margin)}
    return table


def _words(compared: Table) -> str:
    """One comparison in a sentence.

    A dense model that is itself near chance gives no verdict.
    """
    n, worse, better = compared["n"], compared["worse"], compared["better"]
    if compared["floor"]:
        return (
            f"The dense model itself is near chance ({compared['first_right']} of {n} right, chance "
            f"{compared['chance']:.0%}): a comparison says nothing here, and no verdict is given."
        )
    lost = f"{compared['second_right']} of {n} right, dense {compared['first_right']}"
    if compared["p"] >= ALPHA:
        return (
            f"{lost}: no difference shown (p = {compared['p']:.2g}); a loss of up to {compared['detectable_margin']:.1%} "
            "cannot be ruled out."
        )
    if worse > better:
        return f"{lost}: worse, {worse} lost and {better} gained (p = {compared['p']:.2g})."
    return f"{lost}: better, {better} gained and {worse} lost (p = {compared['p']:.2g})."


def _prompt_advice(plan: Plan, answers: Sequence[Entry]) -> list[Table]:
    """What `verify` does against `plain`, on the same samples, row by row."""
    if len(plan.prompts) < 2:
        return []
    first, *others = plan.prompts
    return [
        {"kind": "prompt", "task": task, "row": row, "first": first, "second": other, **_paired(pairs, None)}
        for (task, row), group in _grouped(answers, "task", "row")
        for other in others
        if (pairs := _pairs(group, lambda entry: entry["prompt"], first, other))
    ]


def _place_advice(plan: Plan, answers: Sequence[Entry]) -> list[Table]:
    """What it does that a fact stands at the start or the end instead of the middle, on the same facts and text."""
    if not plan.places or len(plan.depths) < 2:
        return []
    names = {depth: name for name, depth in PLACES.items()}
    first = 0.5 if 0.5 in plan.depths else plan.depths[0]
    return [
        {"kind": "place", "task": task, "row": row, "prompt": prompt, "first": names[first], "second": names[depth],
         **_paired(pairs, None)}
        for (task, row, prompt), group in _grouped(answers, "task", "row", "prompt")
        for depth in plan.depths
        if depth != first and (pairs := _pairs(group, lambda entry: entry["depth"], first, depth))
    ]  # fmt: skip


def _perplexity(plan: Plan, entries: Sequence[Entry]) -> list[Table]:
    """Of each row and length: the perplexity of all pieces, its ratio to dense, and each bin."""
    base = plan.rows[0].name
    dense = {(entry["length"], entry["number"]): entry for entry in entries if entry["row"] == base}
    tables = []
    for (row, length), group in _grouped(entries, "row", "length"):
        tokens = sum(stop - start for start, stop in group[0]["bins"])
        losses = [sum(entry["surprise"]) / tokens for entry in group]
        kept = [
            loss - sum(dense[length, entry["number"]]["surprise"]) / tokens
            for loss, entry in zip(losses, group, strict=True)
        ]
        tables.append(
            {
                "row": row,
                "length": length,
                "pieces": len(group),
                "perplexity": math.exp(sum(losses) / len(losses)),
                "times_dense": math.exp(sum(kept) / len(kept)),
                "bins": [
                    {
                        "start": start,
                        "stop": stop,
                        "perplexity": math.exp(
                            sum(entry["surprise"][index] for entry in group) / len(group) / (stop - start)
                        ),
                    }
                    for index, (start, stop) in enumerate(group[0]["bins"])
                ],
            }
        )
    return tables
