"""The evaluation's pictures as SVG: heat maps over length and depth, accuracy over depth, Pareto, perplexity by position."""

from __future__ import annotations

import io
from typing import Any

from .eval_text import length_name
from .palette import BAD, FAINT_INK, GOOD, INK, PAPER, SERIES_COLOURS


def colour_of(summary: dict[str, Any], row: str) -> str:
    names = [given["name"] for given in summary["rows"]]
    return SERIES_COLOURS[names.index(row) % len(SERIES_COLOURS)]


def heat_maps(summary: dict[str, Any], task: str, prompt: str) -> bytes:
    """Accuracy by length and depth: dense, then each row and its difference from dense."""
    from matplotlib.colors import LinearSegmentedColormap

    cells = {
        (cell["row"], cell["length"], cell["depth"]): cell["accuracy"] for cell in _of(summary["cells"], task, prompt)
    }
    depths = sorted({depth for _, _, depth in cells})
    lengths = summary["lengths"]
    dense, *others = [row["name"] for row in summary["rows"]]
    panels: list[tuple[str, str | None]] = [(dense, None)]
    panels += [panel for row in others for panel in ((row, None), (row, dense))]
    level = LinearSegmentedColormap.from_list("level", [BAD, "#f3e3b0", GOOD])
    change = LinearSegmentedColormap.from_list("change", [BAD, PAPER, "#2f6db5"])
    figure = _figure(min(3.2 * len(panels), 17), 1.6 + 0.42 * len(depths))
    for axes, (row, against) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shares = [
            [cells[row, length, depth] - (cells[against, length, depth] if against else 0) for length in lengths]
            for depth in depths
        ]
        axes.imshow(shares, cmap=change if against else level, vmin=-1 if against else 0, vmax=1, aspect="auto")
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                text = f"{share:+.0%}" if against else f"{share:.0%}"
                axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=INK)
        title = f"{row}\nless dense" if against else row
        axes.set_title(title, color=INK, fontsize=9.5, fontweight="bold", loc="left")
        axes.set_xticks(range(len(lengths)), [length_name(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set_xlabel("tokens", color=FAINT_INK)
        axes.tick_params(colors=FAINT_INK, length=0)
    figure.axes[0].set_ylabel("depth of the fact", color=FAINT_INK)
    return _svg(figure)


def by_depth(summary: dict[str, Any], task: str, prompt: str) -> bytes:
    """Accuracy against the fact's position, all lengths together, with 95 % Wilson bands."""
    scores = list(_of(summary["by_depth"], task, prompt))
    figure = _figure(6.4, 3.4)
    axes = figure.subplots()
    for row in summary["rows"]:
        line = sorted((score for score in scores if score["row"] == row["name"]), key=lambda score: score["depth"])
        depths = [score["depth"] for score in line]
        colour = colour_of(summary, row["name"])
        axes.fill_between(
            depths, [s["low"] for s in line], [s["high"] for s in line], color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(depths, [s["accuracy"] for s in line], color=colour, marker="o", markersize=4, label=row["name"])
    axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _plain(axes, "Right answers by the fact's position, all lengths", "depth of the fact")
    return _svg(figure, legend=True)


def pareto(summary: dict[str, Any], task: str, prompt: str) -> bytes:
    """Accuracy against the share of query-key pairs that a row keeps, a point for each row and length."""
    costs = {(cost["row"], cost["length"]): cost["kept_pairs"] / cost["dense_pairs"] for cost in summary["costs"]}
    figure = _figure(6.4, 3.4)
    axes = figure.subplots()
    for row in summary["rows"]:
        line = [
            (costs[row["name"], score["length"]], score)
            for score in _of(summary["scores"], task, prompt)
            if score["row"] == row["name"] and score["length"] is not None
        ]
        colour = colour_of(summary, row["name"])
        x, y = [share for share, _ in line], [score["accuracy"] for _, score in line]
        bars = [[s["accuracy"] - s["low"] for _, s in line], [s["high"] - s["accuracy"] for _, s in line]]
        axes.errorbar(x, y, yerr=bars, fmt="o", color=colour, markersize=5, linewidth=1, label=row["name"])
        for share, score in line:
            axes.annotate(length_name(score["length"]), (share, score["accuracy"]), xytext=(5, 4),
                          textcoords="offset points", fontsize=8, color=FAINT_INK)  # fmt: skip
    axes.set_xlim(left=0, right=1.08)
    axes.set_ylim(-0.03, 1.08)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _plain(axes, "Right answers for the pairs that are computed", "query-key pairs kept, of dense attention's")
    return _svg(figure, legend=True)


def perplexity_by_position(summary: dict[str, Any]) -> bytes:
    """Perplexity of the longest texts' tokens against how many tokens stand before them."""
    from matplotlib.ticker import NullFormatter

    longest = max(table["length"] for table in summary["perplexity"])
    figure = _figure(6.4, 3.4)
    axes = figure.subplots()
    for table in summary["perplexity"]:
        if table["length"] == longest:
            middles = [(part["start"] * part["stop"]) ** 0.5 for part in table["bins"]]
            axes.plot(
                middles, [part["perplexity"] for part in table["bins"]], color=colour_of(summary, table["row"]), marker="o",
                markersize=4, label=table["row"],
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
    axes.xaxis.set_minor_formatter(NullFormatter())
    _plain(axes, f"Perplexity by position, {longest:,} tokens", "tokens that stand before")
    return _svg(figure, legend=True)


def _of(entries: list[dict[str, Any]], task: str, prompt: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if (entry["task"], entry["prompt"]) == (task, prompt)]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    figure.set_layout_engine("constrained")
    return figure


def _plain(axes: Any, title: str, across: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.set_xlabel(across, color=FAINT_INK)
    axes.tick_params(colors=FAINT_INK, which="both")
    axes.grid(axis="y", color="#e4e8ed")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#cbd2d9")


def _svg(figure: Any, *, legend: bool = False) -> bytes:
    import matplotlib as mpl

    if legend:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, labelcolor=INK, fontsize=9)
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "sparse-attn", "font.size": 10}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "sparse-attn"})
    return buffer.getvalue()
