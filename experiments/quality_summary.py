"""What README.md and docs/anchors.md say of the results, in a paragraph each."""

from pathlib import Path
from statistics import mean

from quality_prose import ANCHORS, COUNTED, TAUGHT, TREE, at_every_place, between, cut, latest, percent
from quality_results import ROOT, TASKS, Group, dense_share, seeds_of, values_of

from sparse_attn.patterns import parse


def told(groups: list[Group]) -> dict[Path, str]:
    """The two pages, with what stands between their marks made anew."""
    said = {ROOT / "README.md": in_readme(groups), ROOT / "docs" / "anchors.md": in_anchors(groups)}
    found = {}
    for path, text in said.items():
        before, rest = path.read_text().split("<!-- trained: begin -->\n")
        found[path] = (
            f"{before}<!-- trained: begin -->\n{text}<!-- trained: end -->{rest.split('<!-- trained: end -->')[1]}"
        )
    return found


def in_readme(groups: list[Group]) -> str:
    """What README.md says of it, a paragraph."""
    found = latest(groups, TAUGHT, ANCHORS, "window", "dense")
    assert found is not None
    seeds = min(seeds_of(found[name]) for name in (TAUGHT, ANCHORS, "window", "dense"))
    window = max(at_every_place(found, "window", *TASKS))
    return (
        f"Over {COUNTED[seeds]}, blocks whose choice is taught keep {cut(min(at_every_place(found, TAUGHT, *TASKS)))} of dense "
        f"accuracy or more on every task, chains of four facts included, at 1/{1 / dense_share(found[TAUGHT]):.1f} of "
        "its FLOPs; a "
        f"window with 64 anchors keeps {between(at_every_place(found, ANCHORS, 'recall', 'multi_query'))} on facts "
        "asked for directly "
        f"and {between(at_every_place(found, ANCHORS, 'four_hops'))} on chains of four; a window alone, at most "
        f"{percent(window)}.\n"
    )


def in_anchors(groups: list[Group]) -> str:
    """What docs/anchors.md says of it, a paragraph."""
    found = latest(groups, ANCHORS, "dense")
    assert found is not None

    def said(found: Group, name: str, what: str) -> str:
        direct, four = (
            [mean(values_of(found[name], f"{task}, far")) for task in tasks]
            for tasks in (("recall", "multi_query"), ("four_hops",))
        )
        return (
            f"{what}, trained for it from short documents on ({COUNTED[seeds_of(found[name])]}), answers {between(direct)} of "
            f"questions about one of 16 facts more than 10,000 tokens away and {between(four)} of those over chains of four facts"
        )

    text = f"Measured, in `docs/quality.md`: {said(found, ANCHORS, 'a window and 64 anchors')}. "
    with_tree = latest(groups, TREE)
    if with_tree is None:
        return text + "Trees have not been measured.\n"
    term = next(term for term in parse(with_tree[TREE][0]["pattern"]).terms if term.extra_keys)
    return text + f"{said(with_tree, TREE, f'The window and a tree of {term.extra_keys} keys')}.\n"
