"""The demo's report: one HTML file with everything in it, readable without a network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from .demo_charts import draw_curves
from .demo_result import DemoResult, describe_row, found, summary
from .palette import BAD, FAINT_INK, GOOD, INK, SKIPPED, term_colour


def render(result: DemoResult, pictures: Mapping[str, tuple[bytes, tuple[str, ...]]], *, picture_tokens: int) -> str:
    """The report as HTML text. Whatever comes from outside (a model's answers among it) is escaped.

    Args:
        result: What was measured.
        pictures: For each row's pattern text: its picture as a PNG file's content, and its terms as text.
        picture_tokens: How many tokens the pictures show.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share: f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
    template = environment.from_string((files(__package__) / "demo.html.j2").read_text(encoding="utf-8"))
    return template.render(
        summary=summary(result),
        about=result.about,
        picture_tokens=f"{picture_tokens:,}",
        rows=[_row(result, row, pictures) for row in result.rows],
        tables=[_table(result, length) for length in result.lengths],
        depths=result.depths,
        curves=_embed("image/svg+xml", draw_curves(result)),
        answers=[(cell, needle) for cell in result.cells for needle in cell["needles"]],
        ink=INK, faint=FAINT_INK, skipped=SKIPPED, good=GOOD, bad=BAD,
    )  # fmt: skip


def _row(
    result: DemoResult, row: dict[str, Any], pictures: Mapping[str, tuple[bytes, tuple[str, ...]]]
) -> dict[str, Any]:
    picture, terms = pictures[row["pattern"] or "full()"]
    return {
        "name": row["name"],
        "colour": result.colour(row["name"]),
        "words": describe_row(row),
        "picture": _embed("image/png", picture),
        "terms": [(term, term_colour(term)) for term in terms],
        "full": [layer in row["full_layers"] or row["pattern"] is None for layer in range(row["layers"])],
    }


def _table(result: DemoResult, length: int) -> dict[str, Any]:
    cells = result.at_length(length)
    dense, slowest = cells[0], max(cell["prefill_seconds"] for cell in cells)
    lines = [
        {
            **cell,
            "colour": result.colour(cell["row"]),
            "share": cell["kept_pairs"] / dense["kept_pairs"],
            "cache_share": cell["cache_bytes"] / dense["cache_bytes"],
            "time_share": cell["prefill_seconds"] / slowest,
            "faster": dense["prefill_seconds"] / cell["prefill_seconds"],
            "found": found(cell),
        }
        for cell in cells
    ]
    return {"length": length, "lines": lines}


def _embed(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
