"""Draws the README's pictures of patterns from the patterns' own masks: python scripts/readme_pictures.py

A row is a query, a column a key; the first token is top left. SVG, so that a change of a pattern shows in a diff.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparse_attn import Chunked, Dilated, Full, Global, Pattern, Random, Sinks, Strided, Window

FOLDER = Path(__file__).parents[1] / "docs" / "patterns"
COLOURS = ["#2f6fb7", "#d1722b", "#3f9a6a", "#8d5fb0"]  # legible on white and on black
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


def pictures() -> dict[str, str]:
    """Every picture's file name and text."""
    drawn = {f"{name}.svg": draw([term], TERM_TOKENS, width=96) for name, term in TERMS.items()}
    drawn["union.svg"] = draw(UNION, UNION_TOKENS, width=384)
    return drawn


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pictures().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"docs/patterns/{name}")


if __name__ == "__main__":
    main()
