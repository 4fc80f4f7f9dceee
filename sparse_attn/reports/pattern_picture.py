"""A pattern's picture: queries down, keys across, one colour a term; as pixels, as PNG, and in a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.style import Style
from rich.text import Text

from .palette import FAINT_INK, INK, PAPER, SKIPPED, rgb, term_colour

Shares = NDArray[np.float64]

_MIDDLE = "#8a94a0"
FAINTEST = 0.4  # of a colour's strength: a single kept key in a cell of thousands must be seen
SHADES = "·░▒▓█"  # skipped, then a quarter of the cell's keys more each


def paint(shares: Shares, dense: Shares, terms: Sequence[str], *, paper: str = PAPER) -> NDArray[np.uint8]:
    """Pixels ``[rows, columns, 3]`` for the shares ``[terms, rows, columns]`` that each term keeps of a cell.

    A cell takes the mixed colour of its terms, the stronger the more of it they keep; cells that dense attention would
    compute and nothing keeps are grey, and what lies in the future is paper.
    """
    colours = np.array([rgb(term_colour(term)) for term in terms], dtype=float).reshape(-1, 3)
    kept = shares.sum(0)
    hue = np.einsum("trc,tx->rcx", shares, colours) / np.maximum(kept, 1e-12)[..., None]
    ground = _mix(np.array(rgb(paper)), np.array(rgb(SKIPPED)), np.minimum(dense * 2, 1))
    strength = np.where(kept > 0, FAINTEST + (1 - FAINTEST) * np.sqrt(np.minimum(kept, 1)), 0)
    return np.rint(_mix(ground, hue, strength)).astype(np.uint8)


def _mix(low: NDArray[np.floating], high: NDArray[np.floating], weight: Shares) -> NDArray[np.floating]:
    return low + (high - low) * weight[..., None]


def draw_png(
    pixels: NDArray[np.uint8], terms: Sequence[str], *, n_queries: int, n_keys: int, title: str, note: str
) -> bytes:
    """The picture with axes, a legend of the terms, and a note below, as a PNG file's content."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(7.4, 7.4 * min(1.25, 0.36 + 0.84 * pixels.shape[0] / pixels.shape[1])), dpi=150)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    first = n_keys - n_queries
    axes.imshow(pixels, extent=(0, n_keys, n_keys, first), interpolation="nearest", aspect="equal")
    axes.set_title(title, color=INK, fontsize=12, fontweight="bold", pad=12, wrap=True)
    axes.set_xlabel(f"keys, by position\n{note}", color=FAINT_INK, fontsize=9.5)
    axes.set_ylabel("queries, by position", color=FAINT_INK, fontsize=9.5)
    axes.tick_params(colors=FAINT_INK, labelsize=9, length=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{int(value):,}")
    for spine in axes.spines.values():
        spine.set_color("#cbd2d9")
    handles = [Patch(color=term_colour(term), label=term) for term in terms]
    handles.append(Patch(color=SKIPPED, label="left out"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=9.5,
        labelcolor=INK, handlelength=1.1, handleheight=1.1,
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", facecolor=PAPER, bbox_inches="tight", pad_inches=0.2, metadata={"Software": "sparse-attn"}
    )
    return buffer.getvalue()


def thumbnail_png(pixels: NDArray[np.uint8], *, scale: int = 3) -> bytes:
    """The bare picture, each cell a square of `scale` pixels, as a PNG file's content."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(pixels.repeat(scale, 0).repeat(scale, 1)), format="png")
    return buffer.getvalue()


def draw_text(
    shares: Shares, dense: Shares, terms: Sequence[str], *, n_queries: int, n_keys: int, colour: bool
) -> Text:
    """The picture for a terminal: two rows of cells a line, in colour as half blocks, otherwise as shades."""
    width = dense.shape[1]
    first, last = n_keys - n_queries, f"{n_keys - 1:,}"
    margin_width = max(len(last), len("queries"))
    margin = " " * (margin_width + 2)
    across = "keys ─▶".center(max(0, width - 1 - len(last)))
    picture = Text().append(f"{margin}0{across}{last}\n" if width > len(last) + 8 else f"{margin}keys ─▶\n", "dim")
    lines = _colour_lines(shares, dense, terms) if colour else _shade_lines(shares, dense)
    labels = {0: f"{first:,}", 1: "queries", 2: "▼", len(lines) - 1: last}
    for number, line in enumerate(lines):
        picture.append(f"{labels.get(number, ''):>{margin_width}}  ", style="dim")
        picture.append_text(line).append("\n")
    picture.append("\n" + margin)
    for term in terms:
        picture.append("██ " if colour else "", style=Style(color=term_colour(term)) if colour else "")
        picture.append(f"{term}   ")
    picture.append(f"{SHADES[0]} left out", style="dim")
    return (
        picture if colour else picture.append(f"\n{margin}{SHADES[1:]} more and more of the cell is kept", style="dim")
    )


def _colour_lines(shares: Shares, dense: Shares, terms: Sequence[str]) -> list[Text]:
    # Mixed with a middle grey, a faint colour shows on dark and on light terminals; what is not kept stays theirs.
    pixels = paint(shares, np.zeros_like(dense), terms, paper=_MIDDLE)
    kept = shares.sum(0) > 0
    lines = []
    for top in range(0, len(kept), 2):
        line = Text()
        for x in range(kept.shape[1]):
            upper, lower = (
                Color.from_rgb(*map(float, pixels[y, x])).name if y < len(kept) and kept[y, x] else None
                for y in (top, top + 1)
            )
            if upper or lower:
                line.append("▀" if upper else "▄", Style(color=upper or lower, bgcolor=lower if upper else None))
            else:
                line.append(SHADES[0] if dense[top : top + 2, x].sum() else " ", Style(dim=True))
        lines.append(line)
    return lines


def _shade_lines(shares: Shares, dense: Shares) -> list[Text]:
    lines = []
    for top in range(0, len(dense), 2):
        kept, past = shares[:, top : top + 2].sum(0).mean(0), dense[top : top + 2].mean(0)
        steps = np.ceil(np.minimum(kept, 1) * (len(SHADES) - 1) - 1e-9).astype(int)
        lines.append(Text("".join(SHADES[s] if p > 0 else " " for s, p in zip(steps, past, strict=True))))
    return lines
