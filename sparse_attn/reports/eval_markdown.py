"""An evaluation's results as Markdown: for a terminal, a pull request, or a notebook."""

from __future__ import annotations

from typing import Any

from .eval_text import citation_lines, covered, headline, length_name, percent


def render_markdown(summary: dict[str, Any]) -> str:
    """The report as Markdown text. What comes from a model stands in code spans, with their marks taken out."""
    parts = ["# What the model keeps, dense and sparse", headline(summary), *_about(summary)]
    for task in summary["tasks"]:
        parts += _task(summary, task)
    if summary["perplexity"]:
        parts += _perplexity(summary)
    if summary["advice"]:
        parts += ["## Advice, measured", *(f"- {line}" for line in advice_lines(summary))]
    if "verdict" in summary:
        parts += ["## Verdict", *(f"- {_cell(reason)}" for reason in summary["verdict"]["reasons"])]
        if summary["verdict"]["correction"]:
            parts.append(summary["verdict"]["correction"])
    if summary["failures"]:
        parts += ["## Some that were lost", *map(_failure, summary["failures"])]
    return "\n\n".join(_joined(parts)) + "\n"


def _joined(parts: list[str]) -> list[str]:
    """Items of one list on lines that follow each other."""
    joined: list[str] = []
    for part in parts:
        if joined and part.startswith("- ") and joined[-1].rpartition("\n")[2].startswith("- "):
            joined[-1] += "\n" + part
        else:
            joined.append(part)
    return joined


def _about(summary: dict[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in summary["about"].items()]


def _task(summary: dict[str, Any], task: dict[str, Any]) -> list[str]:
    parts = [f"## {task['name']}: {task['summary']}", f"{task['difficulty_words']}; source: {task['source']}."]
    for prompt in summary["prompts"]:
        if len(summary["prompts"]) > 1:
            parts.append(f"Prompt: {prompt}")
        lengths = [*summary["lengths"], None]
        lines = [
            "| row | " + " | ".join("all" if length is None else length_name(length) for length in lengths) + " |",
            "|---" * (len(lengths) + 1) + "|",
        ]
        scores = {
            (score["row"], score["length"]): score
            for score in summary["scores"]
            if (score["task"], score["prompt"]) == (task["name"], prompt)
        }
        for row in summary["rows"]:
            cells = [scores.get((row["name"], length)) for length in lengths]
            lines.append(f"| {_cell(row['name'])} | " + " | ".join(map(_score, cells)) + " |")
        parts.append("\n".join(lines))
        parts += [f"- {_cell(row)}: {words}" for row, words in citation_lines(summary, task["name"], prompt)]
        parts += [
            f"- {_cell(found['row'])}: {found['words']}"
            for found in summary["comparisons"]
            if (found["task"], found["prompt"]) == (task["name"], prompt)
        ]
    return parts


def _score(score: dict[str, Any] | None) -> str:
    return (
        ""
        if score is None
        else f"{score['right']} of {score['n']} ({percent(score['low'])} to {percent(score['high'])})"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _perplexity(summary: dict[str, Any]) -> list[str]:
    lengths = sorted({table["length"] for table in summary["perplexity"]})
    tables = {(table["row"], table["length"]): table for table in summary["perplexity"]}
    lines = ["| row | " + " | ".join(map(length_name, lengths)) + " |", "|---" * (len(lengths) + 1) + "|"]
    for row in summary["rows"]:
        cells = [tables[row["name"], length] for length in lengths]
        lines.append(
            f"| {_cell(row['name'])} | "
            + " | ".join(f"{cell['perplexity']:.1f} ({cell['times_dense']:.2f} x dense)" for cell in cells)
            + " |"
        )
    return ["## perplexity: the surprise at the text's own tokens", "\n".join(lines)]


def advice_lines(summary: dict[str, Any]) -> list[str]:
    """What following a piece of advice changed, a sentence each."""
    return [
        f"{found['task']}, {found['row']}: {found['second']} instead of {found['first']}: {found['second_right']} instead of "
        f"{found['first_right']} of {found['n']} right (p = {found['p']:.2g})"
        for found in summary["advice"]
    ]


def _failure(entry: dict[str, Any]) -> str:
    def code(text: str) -> str:
        return "`" + " ".join(text.replace("`", "'").split()) + "`"

    return (
        f"- {_cell(entry['row'])}, {length_name(entry['length'])}: told {code(' '.join(entry['told']))}; asked "
        f"{code(entry['question'])}; expected {code(', '.join(entry['expected']))}; came {code(entry['answer'])}; {covered(entry)}"
    )
