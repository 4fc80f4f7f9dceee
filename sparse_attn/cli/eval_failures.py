"""What a pattern lost that dense attention found, for the report of `sparse-attn eval`: with the pattern's view of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..evals.plan import Plan
    from ..evals.results_file import Entry
    from ..hf.measure import HfReader

FAILURES = 6  # shown in the report


def failures(reader: HfReader, plan: Plan, entries: list[Entry]) -> list[dict[str, Any]]:
    """Samples that dense got right and a pattern did not, of different rows and tasks first, with the pattern's view."""
    from ..patterns.chosen import split_choice
    from ..patterns.hashed import split_hashed
    from ..patterns.view import layers_from_last

    answers = [entry for entry in entries if entry["kind"] == "answer"]

    def sample(entry: Entry) -> tuple[Any, ...]:
        return tuple(entry[name] for name in ("task", "length", "depth", "number", "prompt"))

    right = {sample(entry) for entry in answers if entry["row"] == plan.rows[0].name and entry["correct"]}
    lost = [entry for entry in answers if not entry["correct"] and sample(entry) in right]
    taken: dict[tuple[Any, ...], int] = {}
    ordered = []
    for entry in sorted(lost, key=lambda entry: entry["length"]):
        rank = taken[entry["row"], entry["task"]] = taken.get((entry["row"], entry["task"]), -1) + 1
        ordered.append((rank, entry))
    chosen = [entry for _, entry in sorted(ordered, key=lambda pair: pair[0])[:FAILURES]]
    rows = {row.name: row for row in plan.rows}
    shown = []
    for entry in chosen:
        patterns = reader.in_force(rows[entry["row"]].patterns(reader.layers))
        chooses = any(split_choice(pattern) or split_hashed(pattern) for pattern in patterns)
        steps = layers_from_last(patterns, entry["tokens"])
        view = [int(step) for step in _cells(steps, 240)]
        shown.append({**entry, "view": view, "layers": reader.layers, "chooses": chooses})
    return shown


def _cells(steps: Any, count: int) -> list[int]:
    """The steps of at most `count` stretches of the text, each the fewest of its tokens that can be reached; 0: none."""
    size = -(-len(steps) // count)
    return [min((step for step in steps[at : at + size] if step), default=0) for at in range(0, len(steps), size)]
