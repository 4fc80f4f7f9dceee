"""Sentences and short forms that the evaluation's reports share."""

from __future__ import annotations

from typing import Any


def percent(share: float) -> str:
    return f"{share:.0%}"


def length_name(length: int) -> str:
    """A number of tokens in short: 4K where it is a multiple of 1,024.

    >>> length_name(4096), length_name(1500)
    ('4K', '1,500')
    """
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


def headline(summary: dict[str, Any]) -> str:
    """The finding in a few sentences, made from the run's own numbers."""
    said = []
    perplexity = {
        table["row"]: table for table in sorted(summary["perplexity"], key=lambda table: table["length"])
    }  # each row's longest
    names = {(found["task"], found["prompt"]) for found in summary["comparisons"]}
    for found in summary["comparisons"]:
        where = f"{found['task']}{'' if found['prompt'] == 'plain' else ' (' + found['prompt'] + ')'}"
        prefix = f"{found['row']}" + (f", {where}" if len(names) > 1 or where != "needle" else ", needles")
        said.append(f"{prefix}: {found['words']}")
    for row in summary["rows"][1:]:
        if table := perplexity.get(row["name"]):
            said.append(
                f"{row['name']}: perplexity {table['perplexity']:.1f} at {length_name(table['length'])}, "
                f"{table['times_dense']:.2f} times dense."
            )
    return " ".join(said) or "Only the dense model was read."


def citation_lines(summary: dict[str, Any], task: str, prompt: str) -> list[tuple[str, str]]:
    """Of a task that asks for citations: each row, and what it cited, those that it made up apart."""
    found = []
    for score in summary["scores"]:
        counts = score["counts"]
        if (score["task"], score["prompt"], score["length"]) == (task, prompt, None) and "made_up" in counts:
            found.append(
                (score["row"], f"answer right in {counts['answer_right']} of {score['n']}; cited {counts['cited_right']} documents "
                 f"rightly and {counts['cited_wrong']} wrongly, {counts['made_up']} of these made up (no such document); "
                 f"{counts['quotes_verbatim']} of {counts['quotes']} quotes stand word for word in the document that they name")
            )  # fmt: skip
    return found


def covered(entry: dict[str, Any]) -> str:
    """What the last query could know of the facts, in words."""
    words = _covered(entry)
    return f"{words}, by the pattern's fixed part; what it chose by content is not drawn" if entry["chooses"] else words


def _covered(entry: dict[str, Any]) -> str:
    cells, tokens = entry["view"], entry["tokens"]
    size = -(-tokens // len(cells))
    if not entry["facts"]:
        return f"{sum(step == 1 for step in cells) / len(cells):.0%} of the text stood in direct view of the question's end"
    steps = [cells[start // size] for start, _ in entry["facts"]]
    if all(step == 1 for step in steps):
        return "every fact stood in direct view of the question's end"
    if not all(steps):
        return f"a fact could not reach the question's end through all {entry['layers']} layers"
    return f"the farthest fact reaches the question's end through {max(steps)} layers of {entry['layers']}"
