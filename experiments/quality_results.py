"""The experiments' results, read and grouped: what the tables, pictures and sentences of docs/quality.md are made from."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from fact_variants import VARIANTS
from long_facts import TESTS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
TASKS = {"recall": "single recall", "multi_query": "16-query recall", "two_hops": "two hops", "four_hops": "four hops"}
PLACES = {"far": "> 10,000 tokens away", "anywhere": "anywhere"}
LETTERS = "ABCDEFGH"
MISSING = "not run"
SEEDS = 3  # that were asked for

Run = dict[str, Any]
Group = dict[str, list[Run]]  # the runs of one recipe by variant


def read(name: str) -> list[Run]:
    path = RESULTS / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def recipe_of(run: Run) -> str:
    """How a run learned: only runs of one recipe are compared."""
    return json.dumps([run.get(key) for key in ("base", "base_rate", "planned_stages", "rate", "quick")])


def by_recipe(runs: list[Run]) -> list[Group]:
    """The runs of each recipe by variant, in the order in which recipes were tried; variants in theirs."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[recipe_of(run)].append(run)
    return [
        {name: own for name in ("base", *VARIANTS) if (own := [run for run in group if run["variant"] == name])}
        for group in found.values()
    ]


def seeds_of(runs: list[Run]) -> int:
    return len({run["seed"] for run in runs})


def values_of(runs: list[Run], test: str) -> list[float]:
    return [run["tests"][test] for run in runs if test in run.get("tests", {})]


def dense_share(runs: list[Run]) -> float:
    """Of dense FLOPs; routers spend what they decide, run by run."""
    return mean(run["share_of_dense"] for run in runs)


def questions(task: str, place: str) -> int:
    """How many a seed is asked."""
    return next(asked * documents for name, _, asked, documents in TESTS if name == task) // (
        1 if place == "far" else 2
    )


def beside_dense(found: Group, name: str) -> tuple[list[Run], list[Run]]:
    """A variant's runs and dense attention's, of the seeds that both ran: some seeds' bases are better than others'."""
    ours, dense = (found.get(key, []) for key in (name, "dense"))
    seeds = {run["seed"] for run in ours} & {run["seed"] for run in dense}
    return [run for run in ours if run["seed"] in seeds], [run for run in dense if run["seed"] in seeds]


def kept(found: Group, name: str, place: str) -> dict[str, float]:
    """Of dense accuracy, task by task, means over seeds."""
    shares = {}
    for task in TASKS:
        ours, dense = (values_of(runs, f"{task}, {place}") for runs in beside_dense(found, name))
        if ours and dense and mean(dense) > 0:
            shares[task] = mean(ours) / mean(dense)
    return shares


def error_of_kept(found: Group, name: str, task: str, place: str) -> float:
    """The standard error of a share that was kept, questions taken as independent."""
    n, shares = questions(task, place), []
    for runs in beside_dense(found, name):
        values = values_of(runs, f"{task}, {place}")
        shares.append((mean(values), n * len(values)))
    (ours, n_ours), (dense, n_dense) = shares
    return float((ours * (1 - ours) / n_ours + dense * (1 - dense) / n_dense) ** 0.5 / dense)


def dense_at_worst(found: Group) -> float | None:
    """Dense attention on its weakest task; None: not run."""
    means = [mean(v) for t in TASKS for p in PLACES if (v := values_of(found.get("dense", []), f"{t}, {p}"))]
    return min(means, default=None)


def meet_the_goal(found: Group) -> list[str]:
    """Variants that keep 99% of dense accuracy on every task, where dense is above 95%, at a sixth of its FLOPs."""
    worst = dense_at_worst(found)
    if worst is None or worst <= 0.95:
        return []
    names = []
    for name, runs in found.items():
        shares = [share for place in PLACES for share in kept(found, name, place).values()]
        if name not in ("base", "dense") and shares and min(shares) >= 0.99 and dense_share(runs) <= 1 / 6:
            names.append(name)
    return names


def seeds_that_meet_it(found: Group, name: str) -> tuple[int, int]:
    """Of the seeds that a variant and dense attention both ran: how many meet the goal by themselves, and how many there are."""
    seeds = {run["seed"] for run in beside_dense(found, name)[0]}
    alone = [{key: [run for run in found[key] if run["seed"] == seed] for key in ("dense", name)} for seed in seeds]
    return sum(name in meet_the_goal(own) for own in alone), len(seeds)
