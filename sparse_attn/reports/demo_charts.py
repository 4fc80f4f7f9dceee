"""The demo's curves over the length of the text, as one SVG picture."""

from __future__ import annotations

import io

from .demo_result import DemoResult
from .palette import FAINT_INK, INK

PANELS = (
    ("prefill_seconds", 1, "Prefill, seconds"),
    ("kept_pairs", 1e6, "Kept pairs, millions"),
    ("cache_bytes", 2**20, "KV cache needed, MiB"),
    ("perplexity", 1, "Perplexity"),
)

TICKS = [digit * 10**power for power in range(8) for digit in (1, 2, 5)]
WIDE = 8  # times: from here on a linear axis would flatten all but the largest values


def draw_curves(result: DemoResult) -> bytes:
    """Four panels side by side, one line a row, in the rows' colours; an SVG file's content."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    with mpl.rc_context({"svg.hashsalt": "sparse-attn", "font.size": 10}):
        figure = Figure(figsize=(13, 3.6))
        FigureCanvasSVG(figure)
        figure.set_layout_engine("constrained")
        for axes, (field, unit, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
            for row in result.rows:
                cells = result.of_row(row["name"])
                lengths = [cell["length"] for cell in cells]
                values = [cell[field] / unit for cell in cells]
                axes.plot(
                    lengths, values, color=result.colour(row["name"]), marker="o", markersize=5, linewidth=2,
                    label=row["name"],
                )  # fmt: skip
            axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
            axes.set_xscale("log", base=2)
            axes.set_xticks(result.lengths, [f"{length:,}" for length in result.lengths])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.margins(x=0.1)
            if field == "perplexity" and _spread(result, field) > WIDE:
                axes.set_title(f"{title} (log scale)", loc="left", color=INK, fontsize=11, fontweight="bold")
                axes.set_yscale("log")
                low, high = axes.get_ylim()
                axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.set_ylim(bottom=0)
            axes.set_xlabel("tokens read", color=FAINT_INK)
            axes.tick_params(colors=FAINT_INK)
            axes.grid(axis="y", color="#e4e8ed")
            axes.set_axisbelow(True)
            for side, spine in axes.spines.items():
                spine.set_visible(side == "bottom")
                spine.set_color("#cbd2d9")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, labelcolor=INK)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "sparse-attn"})
    return buffer.getvalue()


def _spread(result: DemoResult, field: str) -> float:
    values = [cell[field] for cell in result.cells]
    return max(values) / min(values)
