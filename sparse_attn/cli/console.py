"""Where output goes: results to stdout; progress, remarks and errors to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def results() -> Console:
    """Standard output, for people."""
    return Console(highlight=False)


def remarks() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """Standard output, for programs: this value and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def say_error(sentence: str) -> None:
    """One line on standard error, never wrapped: a program may read it too."""
    remarks().print(f"[bold red]error:[/bold red] {escape(sentence)}", soft_wrap=True)


def progress_bar() -> Progress:
    """A bar with the time left, on stderr; gone when done. Where stderr is no terminal, nothing is drawn."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=(console := remarks()),
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """A sign of life on stderr for a step whose end cannot be told; drawn in terminals only.

    Gives a function that prints a remark above it.
    """
    console = remarks()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(escape(what), total=None)
        yield lambda remark: progress.console.print(escape(remark), style="dim", soft_wrap=True)
