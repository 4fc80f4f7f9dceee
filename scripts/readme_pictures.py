"""Draws the README's pictures of patterns from the patterns' own masks: python scripts/readme_pictures.py

A row is a query, a column a key; the first token is top left. SVG, so that a change of a pattern shows in a diff.
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from sparse_attn import Chunked, Dilated, Full, Global, Pattern, Random, Sinks, Strided, Window

FOLDER = Path(__file__).parents[1] / "docs" / "patterns"
COLOURS = ["#2f6fb7", "#d1722b", "#3f9a6a", "#8d5fb0"]  # legible on white and on black
FOUND, LOST = "#2f9e6e", "#d64545"
PAPER = "#8883"  # what is not kept: a faint grey, part of the picture on both

TERMS: dict[str, Pattern] = {
    "window": Window(6),
    "chunked": Chunked(8),
    "full": Full(),
    "dilated": Dilated(4, 3),
    "strided": Strided(6),
    "sinks": Sinks(3),
    "global": Global([4, 13]),
    "random": Random(2, seed=0, block=3),
}
TERM_TOKENS = 24

UNION = [Window(12), Sinks(3), Strided(16)]
UNION_TOKENS = 96


def draw(terms: Sequence[Pattern], tokens: int, width: int) -> str:
    """An SVG of what the terms keep causally; a pair that two terms keep has the colour of the first."""
    taken = np.zeros((tokens, tokens), dtype=bool)
    seen = np.tri(tokens, dtype=bool)
    shapes = [f'<path fill="{PAPER}" d="{_path(seen)}"/>']
    for term, colour in zip(terms, COLOURS, strict=False):
        kept = term.mask(tokens)
        shapes.append(f'<path fill="{colour}" d="{_path(kept & ~taken)}"/>')
        taken |= kept
    box = f'viewBox="0 0 {tokens} {tokens}" width="{width}" height="{width}" shape-rendering="crispEdges"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {box}>', *shapes, "</svg>", ""])


def _path(mask: np.ndarray) -> str:
    """Each row's runs of kept keys as bars of height 1."""
    bars = []
    for row, kept in enumerate(mask):
        steps = np.flatnonzero(np.diff(np.concatenate([[0], kept.astype(np.int8), [0]])))
        bars += [f"M{begin} {row}h{end - begin}v1H{begin}z" for begin, end in steps.reshape(-1, 2)]
    return "".join(bars)


def quality() -> str:
    """Perplexity kept, needles lost: a bar for each row's perplexity, and a field for each needle, as `eval` found them."""
    results = FOLDER.parents[1] / "benchmarks" / "results" / "cpu"
    needles = json.loads((results / "eval_needle.json").read_text())
    texts = json.loads((results / "eval_perplexity.json").read_text())
    perplexity = {table["row"]: table["perplexity"] for table in texts["perplexity"]}
    cells = {(cell["row"], cell["length"], cell["depth"]): cell["accuracy"] for cell in needles["cells"]}
    lengths = needles["lengths"]
    depths = sorted({depth for _, _, depth in cells})
    width, height, side = 860, 236, 22
    ink, shapes = "#7d8792", []

    def words(x: float, y: float, text: str, size: int = 13, anchor: str = "start", weight: str = "normal") -> None:
        shapes.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
                      f'fill="{ink}">{escape(text)}</text>')  # fmt: skip

    words(0, 18, "Perplexity, 4K tokens of a book", 14, weight="bold")
    longest = max(perplexity.values())
    for number, row in enumerate(row["name"] for row in needles["rows"]):
        y = 40 + 62 * number
        words(0, y + 10, row)
        length = 200 * perplexity[row] / longest
        shapes.append(f'<rect x="0" y="{y + 18}" width="{length:.1f}" height="18" fill="{COLOURS[number]}"/>')
        words(length + 8, y + 32, f"{perplexity[row]:.1f}")
        left = 310 + 190 * number
        words(left, 18, row, 13, weight="bold")
        for x, tokens in enumerate(lengths):
            words(left + x * (side + 20) + side / 2, 42, f"{tokens // 1024}K", 12, "middle")
            for line, depth in enumerate(depths):
                found = cells[row, tokens, depth]
                shapes.append(
                    f'<rect x="{left + x * (side + 20)}" y="{52 + line * (side + 6)}" width="{side}" height="{side}" rx="4" '
                    f'fill="{FOUND if found == 1 else LOST}" fill-opacity="{1 if found == 1 else 0.9}"/>'
                )
    for line, depth in enumerate(depths):
        words(300, 52 + line * (side + 6) + 16, f"{depth:.0%}", 12, "end")
    words(310, 52 + len(depths) * (side + 6) + 20, "Needles by length and depth: green was found, red was lost", 13)
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="system-ui, sans-serif"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {box}>', *shapes, "</svg>", ""])


def pictures() -> dict[str, str]:
    """Every picture's file name and text."""
    drawn = {f"{name}.svg": draw([term], TERM_TOKENS, width=96) for name, term in TERMS.items()}
    drawn["union.svg"] = draw(UNION, UNION_TOKENS, width=384)
    drawn["../quality.svg"] = quality()
    return drawn


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pictures().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print((FOLDER / name).resolve().relative_to(FOLDER.parents[1]))


if __name__ == "__main__":
    main()
