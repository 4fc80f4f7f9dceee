"""The application: its commands, `--version`, and the one place where errors become a sentence and an exit status."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from .._version import __version__
from .bench import bench
from .console import say_error
from .demo import demo
from .eval import evaluate
from .generate import generate
from .inspect import inspect
from .plan import plan
from .show import show

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 1  # as rich and typer end where they meet it first


class Commands(typer.core.TyperGroup):
    """Runs a command and turns what is wrong with its input into one sentence on stderr."""

    def main(self, args: Any = None, prog_name: Any = None, *, standalone_mode: bool = True, **options: Any) -> Any:  # type: ignore[override]
        try:
            status = super().main(args, prog_name, standalone_mode=False, **options)
        except Exception as error:
            # typer's usage errors: their class has moved between its versions, their method has not.
            if not hasattr(error, "format_message"):
                raise
            if message := error.format_message():
                say_error(f"{message.rstrip('.')} (sparse-attn --help explains)")
            else:  # no command at all: the help that typer shows of itself
                error.show()  # type: ignore[attr-defined]
            status = BAD_INPUT
        if standalone_mode:
            sys.exit(status)
        return status

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that has gone away shows here, not when the interpreter ends
            return result
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _let_stdout_go()
            raise typer.Exit(BROKEN_PIPE) from None
        except (ValueError, NotImplementedError, OSError) as error:
            if ctx.params.get("traceback"):
                raise
            say_error(_sentence(error))
            raise typer.Exit(BAD_INPUT) from error


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _let_stdout_go() -> None:
    """Send what is still buffered nowhere: nobody reads it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


app = typer.Typer(
    cls=Commands,
    name="sparse-attn",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Example: [bold]sparse-attn show "window(64) | sinks(4) | strided(32)" --length 512[/bold]',
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sparse-attn {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the code an error came from, not only its sentence.")
    ] = False,
) -> None:
    """Long-context attention: what a model can see and needs; patterns to see, to read with, and to measure."""


app.command()(show)
app.command()(inspect)
app.command()(plan)

app.command()(generate)
app.command()(demo)
app.command()(bench)
app.command("eval")(evaluate)


def main() -> None:
    """Console entry point."""
    app(prog_name="sparse-attn")
