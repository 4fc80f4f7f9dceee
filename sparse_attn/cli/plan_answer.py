"""What `plan` asks of a model, and how its answers are printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .console import print_json, results

if TYPE_CHECKING:
    from ..planner import Fit, Gpu, Model

USUAL_SHARE = 0.9  # what vLLM takes by default (gpu_memory_utilization)


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


def print_as_json(answers: list[tuple[str, Model, Fit]], weights: str | None) -> None:
    from ..planner import findings, sight
    from ..reports.model_json import FORMAT, plan_json

    found = [
        plan_json(name, model, sight(model, one.context), findings(model, one.context), one, weights)
        for name, model, one in answers
    ]
    print_json(found[0] if len(found) == 1 else {"format": FORMAT, "command": "plan", "models": found})


def print_one(name: str, model: Model, found: Fit, card: Gpu, question: Question) -> None:
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


def print_table(plans: list[tuple[str, Fit]], card: Gpu, question: Question) -> None:
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
