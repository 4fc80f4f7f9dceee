"""The low-rank view as one picture: for each layer, what is outside the window by head, and what each rank catches of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from .atomic import write_whole
from .palette import FAINT_INK, INK, SERIES_COLOURS, TERM_COLOURS


def draw_low_rank(views: dict[str, dict[str, Any]], path: Path, *, title: str = "") -> Path:
    """Write a PNG; above: mass by head in window, sinks and elsewhere; below: mass caught against rank, a line a head.

    Args:
        views: By the name of the layer, what `analysis.LowRankView.as_json` gives.
        path: The file; an existing one is replaced.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(views), 7), dpi=110)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(2, len(views), squeeze=False, sharey="row")
    for (above, below), (name, view) in zip(axes.T, views.items(), strict=True):
        heads = range(len(view["heads"]))
        inside, sinks = ([head[part] for head in view["heads"]] for part in ("inside", "sinks"))
        elsewhere = [head["outside"] - head["sinks"] for head in view["heads"]]
        above.bar(heads, inside, color=TERM_COLOURS["window"], label=f"window of {view['window']:,}")
        above.bar(heads, sinks, bottom=inside, color=TERM_COLOURS["sinks"], label=f"first {view['sinks']} tokens")
        both = [a + b for a, b in zip(inside, sinks, strict=True)]
        above.bar(heads, elsewhere, bottom=both, color=TERM_COLOURS["anchors"], label="elsewhere")
        above.set_title(f"{name}, {view['tokens']:,} tokens", loc="left", color=INK, fontsize=11, fontweight="bold")
        above.set_xlabel("head", color=FAINT_INK)
        for nth, head in enumerate(view["heads"]):
            colour = SERIES_COLOURS[nth % len(SERIES_COLOURS)]
            below.plot(view["ranks"], head["mass_behind_sinks"], color=colour, marker="o", markersize=3, linewidth=1.5)
        below.set_xscale("log", base=2)
        below.xaxis.set_major_formatter(lambda rank, _: f"{rank:g}")
        below.set_ylim(0, 1.02)
        below.set_xlabel("rank of the correction", color=FAINT_INK)
        for axis in (above, below):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("mass of an average query", color=FAINT_INK)
    axes[1][0].set_ylabel("caught of the mass elsewhere", color=FAINT_INK)
    axes[0][0].legend(loc="lower left", framealpha=0.9)
    figure.suptitle(title, color=FAINT_INK, fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return write_whole(path, content.getvalue())
