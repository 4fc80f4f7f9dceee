"""One colour for each kind of term and each row of a comparison, the same in every picture and in the terminal."""

from __future__ import annotations

TERM_COLOURS = {
    "window": "#2f6db5",
    "sinks": "#e3742b",
    "strided": "#2f9e6e",
    "global": "#c8457c",
    "random": "#7d57b8",
    "chunked": "#1f97a6",
    "dilated": "#b58a1b",
    "full": "#64748b",
    "anchors": "#8c564b",
    "anchortree": "#5f7d2a",
}
#: What a model's layer attends with. Layers that see everything are warm, those that do not are cool.
KIND_COLOURS = {
    "full": "#e3742b",
    "latent": "#d6533c",
    "hybrid": "#c78a12",
    "indexed": "#c8457c",
    "sliding": "#2f6db5",
    "chunked": "#1f97a6",
    "linear": "#2f9e6e",
    "none": "#aab4c0",
}
SERIES_COLOURS = ("#64748b", "#2f6db5", "#e3742b", "#2f9e6e", "#7d57b8", "#c8457c", "#1f97a6", "#b58a1b")

PAPER = "#ffffff"
SKIPPED = "#e9edf2"  # what dense attention computes and the pattern leaves out
INK = "#1f2933"
FAINT_INK = "#66727f"
GOOD = "#2f9e6e"
BAD = "#d64545"

OTHER = "#94a3b8"


def term_colour(text: str) -> str:
    """The colour of a term given as text, such as ``window(64)``.

    >>> term_colour("window(64).within(window(128))") == term_colour("window(8)")
    True
    """
    return TERM_COLOURS.get(text.partition("(")[0].strip().lower(), OTHER)


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of ``#rrggbb``, 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
