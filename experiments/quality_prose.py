"""The sentences of docs/quality.md that say what was found: every measured figure is computed."""

from math import ceil, floor
from statistics import mean

from quality_results import (
    LETTERS,
    PLACES,
    SEEDS,
    TASKS,
    Group,
    Run,
    dense_share,
    error_of_kept,
    kept,
    meet_the_goal,
    questions,
    recipe_of,
    seeds_of,
    values_of,
)

from sparse_attn.patterns import parse

ANCHORS, TAUGHT, ROUTER, TREE, HASHED = (
    "window + anchors",
    "window + TopBlocks, taught",
    "window + Router",
    "window + AnchorTree",
    "window + Hashed",
)
PUBLISHED_ANCHORS = 0.973  # of dense accuracy on multi-hop tasks, by a window and 64 anchors
PLACES_SAID = {"far": "more than 10,000 tokens away", "anywhere": "anywhere"}
COUNTED = {1: "one seed"} | {n: f"{word} seeds" for n, word in enumerate(("two", "three", "four", "five", "six"), 2)}


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}%"


def between(values: list[float]) -> str:
    """The least and the most of some shares, in whole percents."""
    least, most = percent(min(values)), percent(max(values))
    return least if least == most else f"{least} to {most}"


def cut(share: float, digits: int = 1) -> str:
    """A bound from below, never rounded up."""
    return f"{floor(100 * share * 10**digits + 1e-9) / 10**digits:.{digits}f}%"


def at_every_place(found: Group, name: str, *tasks: str) -> list[float]:
    return [kept(found, name, place)[task] for place in PLACES for task in tasks]


def letter_of(groups: list[Group], found: Group) -> str:
    return LETTERS[next(index for index, group in enumerate(groups) if group is found)]


def latest(groups: list[Group], *names: str) -> Group | None:
    """The last recipe that ran all of these variants."""
    return next((found for found in reversed(groups) if all(name in found for name in names)), None)


def margin(groups: list[Group]) -> list[str]:
    """How sure it is that the goal was met."""
    lines = []
    for found in groups:
        for name in meet_the_goal(found):
            errors = {place: error_of_kept(found, name, "four_hops", place) for place in PLACES}
            low = min(kept(found, name, place)["four_hops"] - 2 * errors[place] for place in PLACES)
            lines.append(
                f"- The goal's margin, {name}: recipe {letter_of(groups, found)} asks {questions('four_hops', 'far')} four-hop "
                f"questions a seed about far facts and {questions('four_hops', 'anywhere')} anywhere. Over "
                f"{COUNTED[seeds_of(found[name])]} the standard error of a share kept is about {percent(errors['far'], 1)} and "
                f"{percent(errors['anywhere'], 1)} (questions taken as independent): two of them below what was measured, a true "
                f"{percent(low, 1)} is not excluded."
            )
    return lines


def observed(groups: list[Group], row: Run) -> str:
    """Which runs a line about selectors is of."""
    known = {recipe_of(runs[0]): letter_of(groups, found) for found in groups for runs in found.values()}
    recipe = known.get(recipe_of(row), "D")  # the first lines do not name theirs: they are of recipe D
    return f"{row['variant']} of recipe {recipe}'s seed {row['seed']}"


def choosing(groups: list[Group], rows: list[Run]) -> list[str]:
    """What the selection table is of."""
    (tokens, documents, hops), *others = {(row["tokens"], row["documents"], row["hops"]) for row in rows}
    assert not others, "lines of other sizes need a table of their own"
    return [
        f"- What was lost was lost by choosing. Below: {'; '.join(observed(groups, row) for row in rows)}; on "
        f"{documents} documents "
        f"of {tokens:,} tokens, {16 // hops} questions of {hops} hops each (`experiments/selection_ceiling.py`). For "
        "the queries that "
        'are asked, all heads: of the attention mass outside the window, how much lies in the chosen blocks. "The mass itself" '
        "chooses best; a selector cannot hold more."
    ]


def selectors(rows: list[Run]) -> list[str]:
    """What the selection table says."""
    short = {
        row["variant"].rsplit(", ")[-1]: [1 - layer["own"] / layer["best"] for layer in row["layers"]] for row in rows
    }
    answers = {row["variant"].rsplit(", ")[-1]: row["accuracy"] for row in rows}
    worst = max(range(len(short["gated"])), key=short["gated"].__getitem__)
    return [
        f"- Taught selectors hold within {ceil(1000 * max(short['taught'])) / 10:.1f}% of what the best choice of as many blocks "
        f"would, in every layer. The gated coarse attention alone leaves selectors {between(short['gated'])} short of "
        "it, most in "
        f"layer {worst + 1}; the same weights with the best choice would have answered {percent(answers['gated']['best'])} where "
        f"they answered {percent(answers['gated']['own'])}, and taught ones answered {percent(answers['taught']['own'])}."
    ]


def window_alone(groups: list[Group]) -> list[str]:
    found = latest(groups, "window", "dense")
    if found is None:
        return []
    run = found["window"][0]
    pattern = parse(run["pattern"])
    inside = pattern.terms[0].left / run["tokens"]
    answered = [mean(values_of(found["window"], f"{task}, anywhere")) for task in ("recall", "multi_query")]
    most = max(at_every_place(found, "window", *TASKS))
    return [
        f"- A window alone (recipe {letter_of(groups, found)}) answers {percent(answered[0], 1)} (single recall) and "
        f"{percent(answered[1], 1)} (16 queries) of what is asked about facts anywhere, of which about "
        f"{percent(inside, 1)} lie inside "
        f"it, though {run['layers']} layers could hand facts on over {pattern.reach(run['layers']).tokens:,} tokens: "
        "they did not "
        f"learn to. Published: a window alone keeps 81% on questions across documents. Here it keeps at most {percent(most)} of "
        "dense accuracy; what it keeps depends on how many facts lie in reach, so the two figures need not contradict each other."
    ]


def anchors(groups: list[Group]) -> list[str]:
    """Against the published figure: with a stage of short documents first, and without."""
    found = latest(groups, ANCHORS, "dense")
    if found is None:
        return []
    said = [
        "- Published: a window and 64 anchors keep 97.3% of dense accuracy on multi-hop tasks at a sixth of the compute."
    ]
    for other in groups:
        if other is not found and {ANCHORS, "window"} <= set(other):
            ours, window = (
                max(mean(values_of(other[name], f"{task}, {place}")) for task in TASKS for place in PLACES)
                for name in (ANCHORS, "window")
            )
            said.append(
                f"In recipe {letter_of(groups, other)}, begun untrained at 1,024 tokens, they answer at most "
                f"{percent(ours, 1)} on any "
                f"task, the window {percent(window, 1)}."
            )
    tokens, _, steps = found[ANCHORS][0]["stages"][0]
    far = kept(found, ANCHORS, "far")
    reached = [
        task for task in TASKS if far[task] + 2 * error_of_kept(found, ANCHORS, task, "far") >= PUBLISHED_ANCHORS
    ]
    missed = [task for task in TASKS if task not in reached]
    first = [run["losses"][0] for run in found[ANCHORS]]
    last, before = (mean(losses[index] for losses in first) for index in (-1, -2))
    said.append(
        f"Trained from {tokens} tokens on (recipe {letter_of(groups, found)}) they keep "
        f"{between(at_every_place(found, ANCHORS, 'recall', 'multi_query'))} on facts asked for directly, "
        f"{between(at_every_place(found, ANCHORS, 'two_hops'))} over two hops and "
        f"{between(at_every_place(found, ANCHORS, 'four_hops'))} over four. Of far facts, 97.3% lies within two "
        "standard errors, or "
        f"below what was measured, for {listing(reached)}; not for {listing(missed)}. The loss went from {before:.2f} "
        f"to {last:.2f} in "
        f"the last hundred of the {steps} steps at {tokens} tokens: these are not the best that anchors can do."
    )
    return [" ".join(said)]


def listing(tasks: list[str]) -> str:
    return ", ".join(TASKS[task] for task in tasks) or "none"


def chosen_blocks(groups: list[Group]) -> list[str]:
    found = latest(groups, TAUGHT, ANCHORS, "dense")
    if found is None:
        return []
    four = {name: min(at_every_place(found, name, "four_hops")) for name in (TAUGHT, ANCHORS)}
    return [
        f"- Chosen blocks carry facts from more than 10,000 tokens away, over four hops too, once their choice is taught. The "
        f"published account sees a remaining gap in tasks that need four or more distant passages at once: with anchors "
        f"{percent(four[ANCHORS])} of dense accuracy is left over four hops (recipe {letter_of(groups, found)}), with "
        "taught blocks "
        f"{cut(four[TAUGHT])}."
    ]


def routers(groups: list[Group]) -> list[str]:
    """What they spent, if any ran."""
    found = latest(groups, ROUTER)
    if found is None:
        return []
    runs = found[ROUTER]
    options = runs[0]["spent"]["options"]
    shares = {
        key: ", ".join(
            f"{percent(mean(run['spent'][key][n] for run in runs), 1)} {count} blocks"
            for n, count in enumerate(options)
        )
        for key in ("decided", "decided_when_asked")
    }
    return [
        f"- Routers (recipe {letter_of(groups, found)}) spent {percent(dense_share(runs), 1)} of dense FLOPs, scoring "
        "blocks included, "
        f"where reading all chosen blocks would cost {percent(mean(run['most_of_dense'] for run in runs), 1)}. Of "
        "queries and heads "
        f"they gave {shares['decided']}; of the queries that are asked, {shares['decided_when_asked']}."
    ]


def trees_and_hashing(groups: list[Group]) -> list[str]:
    """What they keep, if they ran, and how far a tree's seeds lie apart."""
    lines = []
    for name, what in ((TREE, "A window with a tree"), (HASHED, "A window with hashing")):
        found = latest(groups, name, "dense")
        if found is None:
            continue
        keeps = [
            f"{between([kept(found, name, place)[task] for task in ('recall', 'multi_query')])} of dense accuracy on facts "
            f"{where} asked for directly and {percent(kept(found, name, place)['four_hops'])} over four hops"
            for place, where in PLACES_SAID.items()
        ]
        far = values_of(found[name], "recall, far")
        apart = f"; seed by seed, it answers {between(far)} of far single recall" if len(far) > 1 else ""
        lines.append(
            f"- {what} (recipe {letter_of(groups, found)}, {COUNTED[seeds_of(found[name])]}) keeps {'; '.join(keeps)}{apart}."
        )
    return lines


def repeats(groups: list[Group]) -> list[str]:
    """Runs of one recipe, variant and seed: how far they lie apart."""
    lines = []
    for found in groups:
        apart = []
        for name, runs in found.items():
            for seed in sorted({run["seed"] for run in runs}):
                same = [run["tests"] for run in runs if run["seed"] == seed and "tests" in run]
                if len(same) > 1:
                    most = max(max(own) - min(own) for own in zip(*(tests.values() for tests in same), strict=True))
                    apart.append(f"{name} {most:.4f}")
        if apart:
            lines.append(
                f"- Runs of one seed more than once (recipe {letter_of(groups, found)}), the most that any test differed by: "
                f"{', '.join(apart)}. Dense and window run on PyTorch's own kernels here at up to 1,024 tokens, anchors on this "
                "library's throughout."
            )
    return lines


def not_run(groups: list[Group]) -> list[str]:
    """Of the last recipe: seeds that are missing, and the command for them."""
    found = groups[-1]
    about = next(iter(found.values()))[0]
    lines = []
    for seed in range(SEEDS):
        names = [name for name, runs in found.items() if name != "base" and seed not in {run["seed"] for run in runs}]
        if names:
            minutes = sum(mean(run["seconds"] for run in found[name]) for name in names) / 60
            wanted = " ".join(f'"{name}"' for name in names)
            stages = " ".join(about["planned_stages"])
            lines.append(
                f"- Seed {seed} of recipe {letter_of(groups, found)}: `python experiments/long_facts.py --out "
                f"experiments/results/long_facts.jsonl --first {about['first']} --stages {stages} --seeds {seed} "
                f"--variants {wanted}`; "
                f"the other seeds' runs of these took {minutes:.1f} minutes of {about['device']}, the base's own "
                "training left out."
            )
    counts = [questions(task, place) for task in TASKS for place in PLACES]
    near, middle = ([(p * (1 - p) / n) ** 0.5 for n in (max(counts), min(counts))] for p in (0.95, 0.5))
    lines.append(
        f"- Recipe D tested on half of the documents of recipes A to C. One seed's cells, of {min(counts)} to "
        f"{max(counts)} questions, "
        f"have a standard error of {near[0]:.3f} to {near[1]:.3f} near 0.95 and {middle[0]:.3f} to {middle[1]:.3f} near 0.5."
    )
    return lines
