"""`sparse-attn demo`: a real model reads a book dense and sparse; a table, and a report in one HTML file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..evals.demo import DEPTHS, LENGTHS, LONG_LENGTH, ROWS
from .console import print_json, progress_bar, remarks, results
from .model import load
from .numbers import whole

if TYPE_CHECKING:
    from ..evals.comparison import Cell, Row
    from ..evals.reader import Reader
    from ..reports.demo_result import DemoResult

PICTURE_TOKENS = 2048

EXAMPLES = """Examples:

[bold]sparse-attn demo[/bold]

[bold]sparse-attn demo --long --out report.html[/bold]

[bold]sparse-attn demo --length 1024 --json[/bold]"""


def demo(
    long: Annotated[
        bool, typer.Option("--long", help=f"Read {LONG_LENGTH:,} tokens as well; takes three times as long.")
    ] = False,
    length: Annotated[
        list[int] | None,
        typer.Option(
            parser=whole(1), metavar="N", help="Read this many tokens instead; may be repeated.", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The report; an existing file is replaced.")] = Path(
        "sparse-attn-report.html"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of tables.")] = False,
) -> None:
    """Let SmolLM2-135M-Instruct read a book dense and through five patterns, and report what each costs and keeps."""
    from ..reports.atomic import check_writable, write_whole

    lengths = sorted({*(length or LENGTHS), *((LONG_LENGTH,) if long else ())})
    check_writable(out)  # now, not after minutes of work
    model, tokenizer = load(None)
    from ..hf.measure import HfReader

    rows = [row for row in ROWS if row.from_length <= lengths[-1]]
    result = run(HfReader(model, tokenizer), rows, lengths, DEPTHS)
    # Printed first: a disk that fills up meanwhile shall not cost the minutes of measuring.
    if as_json:
        print_json(result.as_json() | {"report": str(out)})
    else:
        _print(result, out)
    write_whole(out, report(result))


demo.__doc__ = f"{demo.__doc__}\n\n{EXAMPLES}"


def run(reader: Reader, rows: Sequence[Row], lengths: Sequence[int], depths: Sequence[float]) -> DemoResult:
    """Measure every row at every length, with a progress bar and a line for each finished cell on stderr."""
    from ..evals.book import book_text, is_heading, paragraphs
    from ..evals.comparison import compare, needle_prompts
    from ..reports.demo_result import DemoResult

    start = time.perf_counter()
    text = [paragraph for paragraph in paragraphs(book_text()) if not is_heading(paragraph)]
    prompts = needle_prompts(reader, text, lengths, depths)
    cells = []
    with progress_bar() as progress:
        total = sum(_effort(length) for length in lengths for row in rows if length >= row.from_length) * len(depths)
        task = progress.add_task("reading", total=total)
        done = 0.0

        def announce(row: Row, length: int) -> None:
            nonlocal done
            progress.update(task, completed=done, description=f"{length:,} tokens, {row.name}")
            done += _effort(length)

        for cell in compare(reader, rows, prompts, depths, announce):
            cells.append(cell)
            progress.console.print(_line(cell), style="dim", soft_wrap=True)
    return DemoResult(
        about=_about(reader, time.perf_counter() - start),
        rows=[asdict(row) | {"layers": reader.layers} for row in rows],
        cells=[asdict(cell) for cell in cells],
    )


def _effort(length: int) -> float:
    """Seconds of a reading, up to a factor: linear work, and attention's own that grows with the square."""
    return length * (1 + length / 6000)


def _line(cell: Cell) -> str:
    found = sum(needle.found for needle in cell.needles)
    return (
        f"{cell.length:,} tokens, {cell.row}: {cell.prefill_seconds:.1f} s, perplexity {cell.perplexity:.1f}, "
        f"needles {found} of {len(cell.needles)}"
    )


def _about(reader: Reader, seconds: float) -> dict[str, str]:
    """What was run where: for whoever reads the report elsewhere."""
    import platform
    from datetime import datetime

    import torch
    import transformers

    from .._version import __version__
    from ..evals.book import TITLE
    from ..hf import default_model

    return {
        "model": f"{default_model.FILE.removesuffix('.gguf')}, {reader.layers} layers, float32",
        "text": TITLE,
        "date": datetime.now().astimezone().isoformat(" ", "minutes"),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "versions": f"sparse-attn {__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}",
        "measured in": f"{seconds:.0f} s",
    }


def report(result: DemoResult) -> str:
    """The HTML report of a result, with each row's pattern drawn."""
    from ..patterns import parse
    from ..patterns.raster import rasterize
    from ..reports.demo_html import render
    from ..reports.pattern_picture import paint, thumbnail_png

    pictures = {}
    for text in {row["pattern"] or "full()" for row in result.rows}:
        raster = rasterize(parse(text), PICTURE_TOKENS, cells=256)
        pictures[text] = thumbnail_png(paint(raster.shares, raster.dense, raster.terms)), raster.terms
    return render(result, pictures, picture_tokens=PICTURE_TOKENS)


def _print(result: DemoResult, out: Path) -> None:
    from ..reports.demo_result import describe_row, summary
    from ..reports.demo_table import length_table

    console = results()
    for length in result.lengths:
        console.print(length_table(result, length))
        console.print()
    for row in result.rows:
        console.print(f"[bold]{row['name']}[/bold]: {describe_row(row)}")
    console.print(f"\n{summary(result)}\n")
    console.print("KV cache: what the pattern lets a cache keep; the cache in this run evicted nothing.", style="dim")
    console.print(f"report: {out}", soft_wrap=True)
    remarks().print(f"measured in {result.about['measured in']}", style="dim")
