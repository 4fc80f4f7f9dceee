"""`sparse-attn show`: a pattern's picture, cost and reach. Needs no torch."""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..patterns import Full, Pattern, Sinks, parse
from ..patterns.chosen import split_choice
from ..patterns.hashed import split_hashed
from ..patterns.refusals import check_direction, check_union
from .console import print_json, results, waiting
from .numbers import whole

MAX_LENGTH = 1 << 27  # exact pair counts take time in proportion to the length: here about a minute

EXAMPLES = """Examples:

[bold]sparse-attn show "window(64) | sinks(4) | strided(32)" --length 512[/bold]

[bold]sparse-attn show "window(4096) | sinks(4)" --length 1048576 --out pattern.png[/bold]"""


def show(
    pattern: Annotated[str, typer.Argument(help="The pattern, e.g. 'window(64) | sinks(4)'.", show_default=False)],
    length: Annotated[
        int, typer.Option(parser=whole(1, MAX_LENGTH), metavar="S", help="Keys, and queries unless --queries is given.")
    ] = 512,
    queries: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, MAX_LENGTH), metavar="T", help="Fewer queries than keys: the last ones.", show_default=False
        ),
    ] = None,
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="Queries see later keys too.")] = False,
    layers: Annotated[
        int, typer.Option(parser=whole(1, 10_000), metavar="L", help="Layers that information travels through.")
    ] = 30,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the picture to this PNG file instead of the terminal.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and no picture.")] = False,
) -> None:
    """Draw a pattern, and say what it keeps, what it costs and how far it reaches."""
    from ..reports.atomic import check_writable

    chosen = parse(pattern)
    n_queries = length if queries is None else queries
    if n_queries > length:
        raise ValueError(
            f"--queries must be at most --length {length} (queries are the last positions), got {n_queries}"
        )
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"--out must name a PNG file, e.g. pattern.png, got {str(out)!r}")
    if out is not None:
        check_writable(out)  # now, not after the work
    causal = not bidirectional
    check_union(chosen)
    check_direction(chosen, causal)
    with waiting("counting pairs"):
        figures = figures_of(chosen, n_queries, length, causal, layers)
    if out is not None:
        _write_picture(chosen, n_queries, length, causal, out)
        figures["picture"] = str(out)
    if as_json:
        print_json(figures)
        return
    if out is None:
        _draw(chosen, n_queries, length, causal)
    _print_figures(figures, reach_in_words(chosen, layers, causal))


show.__doc__ = f"{show.__doc__}\n\n{EXAMPLES}"


def figures_of(pattern: Pattern, n_queries: int, n_keys: int, causal: bool, layers: int) -> dict[str, Any]:
    """Everything that `show` says in numbers."""
    kept = pattern.pairs(n_queries, n_keys, causal=causal)
    dense = Full().pairs(n_queries, n_keys, causal=causal)
    reach = pattern.reach(layers, causal=causal)
    choosing = split_hashed(pattern) or split_choice(pattern)
    return {
        "pattern": repr(pattern),
        "queries": n_queries,
        "keys": n_keys,
        "causal": causal,
        "kept_pairs": kept,
        "kept_pairs_are": "exact" if choosing is None else "at most",
        "dense_pairs": dense,
        "kept_share": kept / dense,
        "times_cheaper": dense / kept if kept else None,
        "chosen_keys_per_query": 0 if choosing is None else choosing.term.budget,  # at most; null: up to all
        "extra_keys_per_query": pattern.extra_keys,
        "reach": {"layers": reach.layers, "tokens": reach.tokens, "layers_to_any": reach.layers_to_any},
    }


def reach_in_words(pattern: Pattern, layers: int, causal: bool) -> str:
    """What a pattern's `reach` means for the reader of a long text."""
    reach = pattern.reach(layers, causal=causal)
    over = f"over {layers} layer{'s' if layers > 1 else ''}"
    if reach.tokens is not None:
        return f"{over} a query learns of at most {reach.tokens:,} tokens, its own included"
    if reach.layers_to_any is None:
        if (choosing := split_hashed(pattern) or split_choice(pattern)) is not None and choosing.limit is None:
            what = f"{choosing.term!r} may show keys from any distance, but which, the content decides"
            if choosing.static is None:
                return f"{what}: no number of layers is sure to bring every key to every query"
            return f"{what}; without it, {reach_in_words(choosing.static, layers, causal)}"
        sinks = [term for term in pattern.terms if isinstance(term, Sinks)]
        others = [term for term in pattern.terms if not isinstance(term, Sinks)]
        # A causal sink knows nothing but the sinks before it, so that it passes nothing on.
        if causal and others and (near := functools.reduce(operator.or_, others).reach(layers).tokens) is not None:
            seen = " and ".join(map(repr, sinks))
            return f"{seen} can be seen from any distance; {over} a query learns of at most {near:,} tokens besides"
        return "some keys are seen from any distance, but no number of layers brings every key to every query"
    needed = f"{reach.layers_to_any} layer{'s' if reach.layers_to_any > 1 else ''}"
    enough = "" if reach.layers_to_any <= layers else f", more than the {layers} here"
    target = "later one" if causal else "other"
    return f"what stands in any token reaches any {target} within {needed}{enough}, at every length"


def _write_picture(pattern: Pattern, n_queries: int, n_keys: int, causal: bool, out: Path) -> None:
    from ..patterns.raster import rasterize
    from ..reports.atomic import write_whole
    from ..reports.pattern_picture import draw_png, paint

    with waiting("drawing"):
        raster = rasterize(pattern, n_queries, n_keys, cells=512, causal=causal)
        pixels = paint(raster.shares, raster.dense, raster.terms)
        note = _note(n_keys, 512, raster.every_query)
        content = draw_png(
            pixels, raster.terms, n_queries=n_queries, n_keys=n_keys, title=repr(pattern), note=note
        )  # fmt: skip
        write_whole(out, content)


def _note(n_keys: int, cells: int, every_query: bool) -> str:
    if n_keys <= cells:
        return "each pixel is one query and one key"
    stands_for = f"each pixel stands for {-(-n_keys // cells):,} keys: the paler, the fewer of them are kept"
    return stands_for if every_query else f"{stands_for}\nsome of each row's queries were looked at, all keys"


def _draw(pattern: Pattern, n_queries: int, n_keys: int, causal: bool) -> None:
    from ..patterns.raster import rasterize
    from ..reports.pattern_picture import draw_text

    console = results()
    cells = max(8, min(64, console.width - len(f"{n_keys:,}") - 4))
    with waiting("drawing"):
        raster = rasterize(pattern, n_queries, n_keys, cells=cells, causal=causal)
    coloured = console.color_system is not None and not console.no_color
    console.print(
        draw_text(raster.shares, raster.dense, raster.terms, n_queries=n_queries, n_keys=n_keys, colour=coloured)
    )
    console.print()


def _cost(cheaper: float | None, bound: bool) -> str:
    if cheaper is None:
        return "nothing: no pair is kept"
    if not bound:
        return f"{cheaper:,.1f} times less than dense attention"
    if cheaper == 1:
        return "at most that of dense attention, and that of choosing: how much less, the content decides"
    return f"at least {cheaper:,.1f} times less than dense attention, without that of choosing"


def _print_figures(figures: dict[str, Any], reach: str) -> None:
    from rich.table import Table

    direction = "causal" if figures["causal"] else "bidirectional"
    bound, chosen = figures["kept_pairs_are"] == "at most", figures["chosen_keys_per_query"]
    rows = {
        "pattern": figures["pattern"],
        "shape": f"{figures['queries']:,} queries on {figures['keys']:,} keys, {direction}",
        "kept pairs": f"{'at most ' * bound}{figures['kept_pairs']:,} of {figures['dense_pairs']:,} ({figures['kept_share']:.3%})",
        "cost": _cost(figures["times_cheaper"], bound),
        "reach": reach,
    }
    if bound:
        most = "as many as its coverage takes" if chosen is None else f"at most {chosen:,}"
        rows["chosen keys"] = f"{most} for each query, by content: counted above, not in the picture"
    if figures["extra_keys_per_query"]:
        rows["extra keys"] = f"{figures['extra_keys_per_query']:,} summary keys for each query, not counted above"
    if "picture" in figures:
        rows["picture"] = figures["picture"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    results().print(table, markup=False)
