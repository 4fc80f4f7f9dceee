"""`sparse-attn plan`: what a model's weights and cache take on a GPU, from its config alone. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_json, results
from .numbers import length, memory, one_of, share, whole

if TYPE_CHECKING:
    from ..planner import Fit, Gpu, Model

DEFAULT_GPU = "a100-80gb"
USUAL_SHARE = 0.9  # what vLLM takes by default (gpu_memory_utilization)

EXAMPLES = """Examples:

[bold]sparse-attn plan path/to/config.json --gpu a100-80gb --context 256k[/bold]

[bold]sparse-attn plan A/config.json B/config.json --gpu rtx-4090 --weights int4 --kv fp8[/bold]

[bold]sparse-attn plan A/config.json B/config.json --html plan.html[/bold]   (a page to drag the context on)"""


@dataclass(frozen=True)
class Question:
    """What is asked of every model: options of `fit`."""

    gpu: Gpu
    gpus: int
    context: int | None
    batch: int
    weights: str | None
    kv: str
    utilization: float
    accounting: str

    def ask(self, model: Model) -> Fit:
        """The planner's answer."""
        from ..planner import fit

        return fit(
            model, self.gpu, gpus=self.gpus, context=self.context, batch=self.batch, weights=self.weights, kv=self.kv,
            utilization=self.utilization, accounting=self.accounting,
        )  # fmt: skip


def plan(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A config.json, a folder with one, a GGUF file, or a model's id in the local Hugging Face cache; or several.",
        ),
    ],
    gpu: Annotated[
        str | None,
        typer.Option(
            help=f"The card, e.g. {DEFAULT_GPU}, h100, rtx-4090; {DEFAULT_GPU} if left out.", show_default=False
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(parser=whole(1, 1024), metavar="N", help="Cards that share the model.")] = 1,
    context: Annotated[
        int | None,
        typer.Option(
            parser=length,
            metavar="N",
            help="Tokens of a sequence, e.g. 256k; else what each config advertises.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(parser=whole(1, 1 << 20), metavar="N", help="Sequences at a time.")] = 1,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weight format: bf16, fp8, int8, int4, nf4, mxfp4 or a GGUF type such as Q4_K_M; else as stored.",
            show_default=False,
        ),
    ] = None,
    kv: Annotated[str, typer.Option(help="KV cache format: bf16, fp16, fp8, int8, int4.")] = "bf16",
    utilization: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="Share of the memory that may be used.")
    ] = USUAL_SHARE,
    gpu_memory: Annotated[
        int | None,
        typer.Option(
            parser=memory,
            metavar="SIZE",
            help="Take this much memory for the card's, e.g. 80GB or 24GiB.",
            show_default=False,
        ),
    ] = None,
    accounting: Annotated[
        str,
        typer.Option(
            parser=one_of("exact", "vllm", "transformers"),
            metavar="NAME",
            help="Count the cache exactly, or as vllm or transformers allocates it.",
        ),
    ] = "exact",
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
        bool, typer.Option("--download", help="Fetch the configs (no weights) of models that are not in the cache.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a self-contained page to choose models, GPUs and lengths on.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say what a model needs on a GPU, whether it fits, how far its context goes, and what would help."""
    from ..reports.atomic import check_writable, write_whole
    from .model_source import name_of, resolve

    if html is not None:
        check_writable(html)
    card = _card(gpu, gpu_memory)
    used = card if gpu_memory is None else card.with_memory(gpu_memory)
    question = Question(used, gpus, context, batch, weights, kv, utilization, accounting)
    resolved = [(name_of(source), resolve(source, assume=assume, download=download)) for source in models]
    answers = [
        (name, model, _ask(source, question, model, len(models)))
        for source, (name, model) in zip(models, resolved, strict=True)
    ]
    if as_json:
        _print_json(answers, weights)
    elif len(answers) == 1:
        _print_one(*answers[0], card, question)
    else:
        _print_table([(name, found) for name, _, found in answers], card, question)
    if gpu is None and gpu_memory is None and not as_json:
        results().print(f"no --gpu was given: {card.name} was taken", style="dim")
    if html is not None:
        from ..reports.plan_html import render

        write_whole(html, render([(name, model) for name, model, _ in answers], [found for _, _, found in answers]))
        if not as_json:
            results().print(f"page: {html}", soft_wrap=True, markup=False)


plan.__doc__ = f"{plan.__doc__}\n\n{EXAMPLES}"


def _card(name: str | None, given: int | None) -> Gpu:
    """The named card; without a name the default, or a nameless one of the given memory, whose speed nobody knows."""
    from ..planner import Gpu, find_gpu

    if name is not None or given is None:
        try:
            return find_gpu(DEFAULT_GPU if name is None else name)
        except ValueError as error:
            raise ValueError(f"--{error}") from None
    return Gpu("unnamed GPU", (), given, math.nan, math.nan, None, "memory as given")


def _ask(source: str, question: Question, model: Model, many: int) -> Fit:
    try:
        return question.ask(model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}" if many > 1 else str(error)) from None


def _print_json(answers: list[tuple[str, Model, Fit]], weights: str | None) -> None:
    from ..planner import findings, sight
    from ..reports.model_json import FORMAT, plan_json

    found = [
        plan_json(name, model, sight(model, one.context), findings(model, one.context), one, weights)
        for name, model, one in answers
    ]
    print_json(found[0] if len(found) == 1 else {"format": FORMAT, "command": "plan", "models": found})


def _print_one(name: str, model: Model, found: Fit, card: Gpu, question: Question) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..planner import findings
    from ..reports.inspect_table import findings_table
    from ..reports.plan_table import BAR_COLOURS, BAR_LETTERS, bar, bill
    from ..reports.plan_words import answer, bound_words, remedy_words
    from ..reports.sizes import tokens

    console = results()
    coloured = console.color_system is not None and not console.no_color
    console.print(name, style="bold", markup=False)
    console.print(Text(answer(found), style="green" if found.fits else "red"))
    console.print()
    console.print(bar(found, width=console.width, colour=coloured))
    names = Text("  ").join(
        Text.assemble(("█ " if coloured else f"{BAR_LETTERS[part]} = ", colour if coloured else ""), part)
        for part, colour in BAR_COLOURS.items()
    )
    console.print(Text.assemble(names, "  | = memory to be used"))
    console.print()
    console.print(bill(found, model))
    console.print()
    console.print(f"largest context at batch {found.batch}: [bold]{tokens(found.max_context)}[/bold] tokens")
    most = "no bound" if found.max_batch is None else f"{found.max_batch:,}"
    console.print(f"largest batch at {found.context:,} tokens: [bold]{most}[/bold]")
    for line in bound_words(found):
        console.print(line, markup=False)
    if found.remedies:
        console.print("\n[bold]what would help[/bold], what costs least first")
        table = Table.grid(padding=(0, 2))
        for remedy in found.remedies:
            set_to, brings, price = remedy_words(remedy)
            table.add_row(Text(set_to, style="bold"), Text(brings, style="green" if remedy.fits else ""), Text(price))
        console.print(table)
    warnings = tuple(one for one in findings(model, found.context) if one.severity == "warning")
    if warnings:
        console.print("\n[bold]findings[/bold] (sparse-attn inspect has all)")
        console.print(findings_table(warnings))
    console.print()
    for note in [*_capacity(found, model, card, question), *found.kv.notes, *found.notes]:
        console.print(Text(f"note: {note}", style="dim"))


def _capacity(found: Fit, model: Model, card: Gpu, question: Question) -> list[str]:
    """Why the figures differ from published ones; asks again on the card's true memory where another was given."""
    from dataclasses import replace

    from ..reports.plan_words import capacity_notes

    other = question.gpu.memory_bytes != card.memory_bytes
    true = replace(question, gpu=card, utilization=USUAL_SHARE).ask(model) if other else None
    return capacity_notes(found, card, true)


def _print_table(plans: list[tuple[str, Fit]], card: Gpu, question: Question) -> None:
    from rich.text import Text

    from ..reports.plan_table import comparison
    from ..reports.sizes import gb

    console = results()
    cards = f"{question.gpus} x {question.gpu.name}, each with" if question.gpus > 1 else f"{question.gpu.name},"
    lengths = {found.context for _, found in plans}
    asked = f"{lengths.pop():,} tokens" if len(lengths) == 1 else "each model at its advertised context"
    console.print(
        f"{asked} on {cards} {gb(plans[0][1].available_bytes)} to be used ({question.utilization:.0%} of "
        f"{gb(question.gpu.memory_bytes)}); batch {question.batch}, KV in {question.kv}, accounting: {question.accounting}",
        markup=False,
    )
    console.print()
    console.print(comparison(plans))
    console.print(Text("* a bound, not a measurement: bytes of a step over the bandwidth, one sequence", style="dim"))
    if question.gpu.memory_bytes != card.memory_bytes:
        real = f"a real {card.name} reports {card.memory_bytes / 2**20:,.0f} MiB = {gb(card.memory_bytes)}"
        console.print(Text(f"the memory of {gb(question.gpu.memory_bytes)} is as given; {real}", style="dim"))
