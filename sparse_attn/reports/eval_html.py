"""The evaluation's report: one HTML file with everything in it, readable without a network."""

from __future__ import annotations

from base64 import b64encode
from importlib.resources import files
from typing import Any

from .eval_charts import by_depth, colour_of, heat_maps, pareto, perplexity_by_position
from .eval_markdown import advice_lines
from .eval_text import citation_lines, covered, headline, length_name
from .palette import BAD, FAINT_INK, GOOD, INK

NEAR, UNSEEN = (47, 109, 181), "#e9edf2"  # the last query's direct view, and what it can never learn of


def render(summary: dict[str, Any]) -> str:
    """The report as HTML text. Whatever comes from outside (a model's answers among it) is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share: f"{share:.0%}"
    environment.filters["tokens"] = length_name
    template = environment.from_string((files(__package__) / "eval.html.j2").read_text(encoding="utf-8"))
    return template.render(
        summary=summary,
        headline=headline(summary),
        rows=[{**row, "colour": colour_of(summary, row["name"])} for row in summary["rows"]],
        parts=[_part(summary, task, prompt) for task in summary["tasks"] for prompt in summary["prompts"]],
        perplexity=_picture(perplexity_by_position(summary)) if summary["perplexity"] else None,
        advice=advice_lines(summary),
        failures=[_failure(entry) for entry in summary["failures"]],
        ink=INK, faint=FAINT_INK, good=GOOD, bad=BAD, near=_step_colour(1, 1), unseen=UNSEEN,
    )  # fmt: skip


def _part(summary: dict[str, Any], task: dict[str, Any], prompt: str) -> dict[str, Any]:
    name = task["name"]
    pictures = []
    if task["has_depth"]:
        pictures.append((_picture(heat_maps(summary, name, prompt)), "right answers by length and depth", True))
        if len({score["depth"] for score in summary["by_depth"] if score["task"] == name}) > 1:
            pictures.append((_picture(by_depth(summary, name, prompt)), "right answers by the fact's position", False))
    pictures.append((_picture(pareto(summary, name, prompt)), "right answers against kept pairs", False))
    scores = {
        (score["row"], score["length"]): score
        for score in summary["scores"]
        if (score["task"], score["prompt"]) == (name, prompt)
    }
    return {
        **task,
        "prompt": prompt if len(summary["prompts"]) > 1 else None,
        "pictures": pictures,
        "lines": [
            (row["name"], colour_of(summary, row["name"]),
             [scores[row["name"], length] for length in [*summary["lengths"], None]])
            for row in summary["rows"]
        ],
        "words": citation_lines(summary, name, prompt)
        + [
            (found["row"], found["words"])
            for found in summary["comparisons"]
            if (found["task"], found["prompt"]) == (name, prompt)
        ],
    }  # fmt: skip


def _failure(entry: dict[str, Any]) -> dict[str, Any]:
    """A lost sample, with the text drawn as a strip: the darker, the fewer layers lie between it and the question's end."""
    cells, tokens = entry["view"], entry["tokens"]
    most = max(cells)
    return {
        **entry,
        "covered": covered(entry),
        "cells": [
            (100 * index / len(cells), 100 / len(cells), _step_colour(step, most)) for index, step in enumerate(cells)
        ],
        "marks": [(100 * start / tokens, max(0.6, 100 * (stop - start) / tokens)) for start, stop in entry["facts"]],
        "most": most,
    }


def _step_colour(step: int, most: int) -> str:
    """Dark blue for the direct view, paler for each layer more, grey for what is out of reach."""
    if not step:
        return UNSEEN
    pale = 0.0 if step == 1 else 0.35 + 0.45 * (step - 2) / max(1, most - 1)
    return "#" + "".join(f"{round(part + (255 - part) * pale):02x}" for part in NEAR)


def _picture(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg).decode()}"
