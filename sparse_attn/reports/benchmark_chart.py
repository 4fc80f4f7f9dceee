"""The GPU benchmark as one picture: time and throughput against length, both axes logarithmic."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from .atomic import write_whole
from .palette import FAINT_INK, INK, SERIES_COLOURS

#: Groups of rows that are drawn together: title, pattern, causal, head dim.
GROUPS = (
    ("window(2048), causal, D 128", "window(2048)", True, 128),
    ("window(2048), bidirectional, D 64", "window(2048)", False, 64),
    ("window(1024) | sinks(4) | strided(1024)", "window(1024) | sinks(4) | strided(1024)", True, 128),
)
NAMES = ("sparse-attn", "SDPA flash", "SDPA cuDNN", "FlexAttention", "flash-attn-4")


def draw_benchmark(result: dict[str, Any], path: Path) -> Path:
    """Write a PNG: forward milliseconds above, TFLOP/s over kept pairs below, a column for each pattern.

    Dense attention computes every pair; its TFLOP/s count the pairs that the pattern keeps all the same.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [(title, _rows(result, pattern, causal, d)) for title, pattern, causal, d in GROUPS]
    groups = [(title, rows) for title, rows in groups if rows] or [("all shapes", result["rows"])]
    figure = Figure(figsize=(5 * len(groups), 7.5), dpi=110)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(2, len(groups), squeeze=False)
    for (above, below), (title, rows) in zip(axes.T, groups, strict=True):
        for name, colour in zip(NAMES, SERIES_COLOURS[1:], strict=False):
            timed = [(row, row["times"][name]["forward"]) for row in rows if name in row["times"]]
            if not timed:
                continue
            lengths = [row["T"] for row, _ in timed]
            style: dict[str, Any] = {"color": colour, "label": name, "marker": "o", "markersize": 5, "linewidth": 2}
            above.plot(lengths, [times[0] for _, times in timed], **style)
            below.plot(lengths, [_rate(row, times[0]) for row, times in timed], **style)
        above.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
        for axis, label in ((above, "forward, milliseconds"), (below, "TFLOP/s over kept pairs")):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.xaxis.set_major_formatter(lambda length, _: f"{length / 1024:g}K")
            axis.set_ylabel(label, color=FAINT_INK)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        below.set_xlabel("tokens", color=FAINT_INK)
    axes[0][0].legend(frameon=False)
    figure.suptitle(f"{result['gpu']}, {result['date']}, bfloat16, batch 1", color=FAINT_INK, fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return write_whole(path, content.getvalue())


def _rows(result: dict[str, Any], pattern: str, causal: bool, head_dim: int) -> list[dict[str, Any]]:
    rows = [row for row in result["rows"] if (row["pattern"], row["causal"], row["D"]) == (pattern, causal, head_dim)]
    return sorted(rows, key=lambda row: row["T"])


def _rate(row: dict[str, Any], milliseconds: float) -> float:
    return float(4 * row["Hq"] * row["D"] * row["pairs"] / milliseconds / 1e9)
