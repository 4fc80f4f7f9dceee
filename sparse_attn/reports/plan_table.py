"""A plan in a terminal: the bill of one model, or several models in one table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from ..planner import Fit, Model
from .sizes import gb, kib, tokens

BAR_COLOURS = {"weights": "#64748b", "growing KV": "#e3742b", "bounded state": "#2f6db5", "workspace": "#7d57b8"}
BAR_LETTERS = {"weights": "w", "growing KV": "g", "bounded state": "b", "workspace": "x"}  # where there is no colour


def parts(plan: Fit) -> dict[str, int]:
    """What one GPU holds, by the names of BAR_COLOURS; the parts add up to `required_bytes`."""
    bounded = plan.kv.batch * plan.kv.bounded_bytes + plan.kv.reserved_bytes
    return {
        "weights": plan.weights_bytes,
        "growing KV": plan.kv.total_bytes - bounded,
        "bounded state": bounded,
        "workspace": plan.workspace.total_bytes,
    }


def bar(plan: Fit, *, width: int, colour: bool) -> Text:
    """The bill as one bar, with a mark where the memory to be used ends."""
    room = max(10, width - 2)
    scale = room / max(plan.required_bytes, plan.available_bytes, 1)
    end = round(plan.available_bytes * scale)
    letters: list[tuple[str, str]] = []
    done = 0
    for name, size in parts(plan).items():
        done += size
        letters += [(BAR_LETTERS[name], BAR_COLOURS[name])] * (round(done * scale) - len(letters))
    letters += [("·", "")] * (room - len(letters))
    text = Text()
    for place in range(room + 1):
        if place == end:
            text.append("|", style="bold")
        if place < room:
            letter, shade = letters[place]
            text.append("█" if colour and shade else letter, style=shade if colour else "")
    return text


def bill(plan: Fit, model: Model) -> Table:
    """Every item with its bytes on one GPU."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("on each GPU" if plan.gpus > 1 else "item", min_width=18)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("how")
    each = f", a {plan.gpus}th of the matrices" if plan.gpus > 1 else ""
    table.add_row(
        "weights", gb(plan.weights_bytes), f"{model.parameters.total:,} parameters in {plan.weights_dtype}{each}"
    )
    for item in plan.kv.items:
        rate = f"{kib(item.bytes_per_token)} for each token" if item.bytes_per_token else "bounded"
        note = f"; {item.note}" if item.note else ""
        many = f", {plan.batch} sequences" if plan.batch > 1 else ""
        table.add_row(Text(f"  {item.name}"), gb(item.bytes * plan.batch), Text(f"{rate}{many}{note}"))
    rate = (
        f"{kib(plan.kv.growing_bytes_per_token)} for each token in {plan.kv.kv_dtype}"
        if plan.kv.items
        else "none between calls"
    )
    table.add_row("KV cache in all", gb(plan.kv.total_bytes), f"{rate}, accounting: {plan.accounting}")
    table.add_row(
        "workspace", gb(plan.workspace.total_bytes), f"a prefill step of {plan.workspace.chunk:,} tokens, estimated"
    )
    verdict = "fits" if plan.fits else "too much"
    table.add_row(
        Text("needed", style="bold"),
        Text(gb(plan.required_bytes), style="bold green" if plan.fits else "bold red"),
        f"{verdict}: {gb(plan.available_bytes)} may be used",
    )
    return table


def comparison(plans: Sequence[tuple[str, Fit]]) -> Table:
    """One row a model; its context stands under its name where the models' contexts differ."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("\nmodel", min_width=10, overflow="fold")
    names = (
        "\nweights",
        "KV per\ntoken",
        "\nKV",
        "\nneeded",
        "\nfits",
        "largest\ncontext",
        "largest\nbatch",
        "\ntok/s*",
    )
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    differ = len({plan.context for _, plan in plans}) > 1
    for name, plan in plans:
        speed = plan.bounds.decode_tokens_per_second
        table.add_row(
            Text(f"{name}\nat {plan.context:,}" if differ else name),
            f"{plan.weights_bytes / 1e9:,.1f}",
            f"{plan.kv.growing_bytes_per_token / 1024:,.4g}",
            f"{plan.kv.total_bytes / 1e9:,.1f}",
            f"{plan.required_bytes / 1e9:,.1f}",
            Text("yes", style="green") if plan.fits else Text("no", style="red"),
            tokens(plan.max_context, "any"),
            "any" if plan.max_batch is None else f"{plan.max_batch:,}",
            f"{speed:,.0f}" if speed == speed else "-",
        )
    return table
