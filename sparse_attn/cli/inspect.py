"""`sparse-attn inspect`: which layers of a model can look anywhere, from its config alone. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_json, results
from .numbers import length, one_of

if TYPE_CHECKING:
    from ..planner import Finding, Model, Sight

FOUND = 1  # --fail-on met its severity

EXAMPLES = """Examples:

[bold]sparse-attn inspect path/to/config.json[/bold]

[bold]sparse-attn inspect org/model --fail-on warning[/bold]   (a model in the local Hugging Face cache)"""


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A config.json, a folder with one, a GGUF file, or a model's id in the local Hugging Face cache.",
            show_default=False,
        ),
    ],
    context: Annotated[
        int | None,
        typer.Option(
            parser=length,
            metavar="N",
            help="Tokens that it shall read, e.g. 128k; else what the config advertises.",
            show_default=False,
        ),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            parser=one_of("info", "warning"),
            metavar="SEVERITY",
            show_default=False,
            help="Exit with status 1 if there is a finding of this severity ('warning' or 'info') or a graver one.",
        ),
    ] = None,
    assume: Annotated[
        str | None,
        typer.Option(
            parser=one_of("full"),
            metavar="full",
            show_default=False,
            help="Take every layer of an unknown model type for full attention.",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the config (no weights) of a model that is not in the cache.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a self-contained page as well.", show_default=False)
    ] = None,
) -> None:
    """Say which layers of a model can look anywhere, how far the others reach, and what in its config misleads."""
    from ..planner import SEVERITIES, findings, sight
    from ..reports.atomic import check_writable, write_whole
    from .model_source import name_of, resolve

    if html is not None:
        check_writable(html)
    resolved = resolve(model, assume=assume, download=download)
    found = findings(resolved, context)
    seen = sight(resolved, context)
    name = name_of(model)
    if as_json:
        from ..reports.model_json import inspect_json

        print_json(inspect_json(name, resolved, seen, found))
    else:
        _print(name, resolved, seen, found)
    if html is not None:
        from ..reports.inspect_html import render

        write_whole(html, render(name, resolved, seen, found))
        if not as_json:
            results().print(f"page: {html}", soft_wrap=True, markup=False)
    gravest = max((SEVERITIES.index(one.severity) for one in found), default=-1)
    if fail_on is not None and gravest >= SEVERITIES.index(fail_on):  # type: ignore[arg-type]
        raise typer.Exit(FOUND)


inspect.__doc__ = f"{inspect.__doc__}\n\n{EXAMPLES}"


def _print(name: str, model: Model, seen: Sight, found: tuple[Finding, ...]) -> None:
    from ..reports.inspect_table import facts, facts_table, findings_table
    from ..reports.layer_strip import legend, strip

    console = results()
    coloured = console.color_system is not None and not console.no_color
    console.print(name, style="bold", markup=False)
    console.print()
    console.print(strip(model, width=console.width, colour=coloured))
    for line in legend(model, colour=coloured):
        console.print(line)
    console.print()
    console.print(facts_table(facts(model, seen)))
    console.print()
    if found:
        warnings = sum(one.severity == "warning" for one in found)
        console.print(
            f"[bold]findings[/bold]: {warnings} warning{'s' * (warnings != 1)}, {len(found) - warnings} for information"
        )
        console.print(findings_table(found))
