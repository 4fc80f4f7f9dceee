"""What a model can see, for a terminal and for the HTML report: the same sentences in both."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ..planner import Finding, Model, Sight, kv_cost, weights_cost
from .demo_result import spans
from .sizes import gb, kib, parameters

SEVERITY_STYLES = {"warning": "bold yellow", "info": "cyan"}


def facts(model: Model, seen: Sight) -> dict[str, str]:
    """Name and sentence of everything that is no finding."""
    counted = model.parameters
    held = weights_cost(model)
    known = {
        "model": f"{model.model_type}, {len(model.layers)} layers, hidden size {model.hidden_size:,}",
        "parameters": f"{parameters(counted.total)}"
        + (f", {parameters(counted.active)} of them active for a token" if counted.active != counted.total else ""),
        "weights": f"{gb(held.total_bytes)} in {held.dtype}"
        + ("" if held.source == "counted" else f", from {held.source}"),
        "sees everything": _everything(seen),
    }
    run = seen.longest_run
    if seen.everything and run is not None:
        known["longest run without"] = f"{run.length} layers ({run.first} to {run.last})"
    known["reach"] = reach(model, seen)
    known["context"] = _context(model)
    known["position encoding"] = _positions(model)
    known |= _cache(model, seen)
    return known


def facts_table(known: dict[str, str]) -> Table:
    """Names and sentences side by side."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, sentence in known.items():
        table.add_row(name, Text(sentence))
    return table


def findings_table(found: tuple[Finding, ...]) -> Table:
    """Severity and rule, message and source."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in found:
        words = Text(finding.message)
        words.append(f"\n{finding.rule} · {finding.source}", style="dim")
        table.add_row(Text(finding.severity, style=SEVERITY_STYLES[finding.severity]), words)
    return table


def reach(model: Model, seen: Sight) -> str:
    """How far back a token can influence the answer."""
    if not model.causal:
        return "to both sides (an encoder)"
    if seen.reach is None:
        return "every earlier token" if seen.everything else "any distance, through the keys that are chosen"
    carried = "; recurrent states carry a summary of what lies further back" if seen.recurrent else ""
    if not seen.bounded:
        return "no exact recall: the past is there as recurrent states only"
    windows = {model.layers[index].window for index in seen.bounded}
    formula = (
        f" = {len(seen.bounded)} x ({seen.exact:,} - 1) + 1" if len(windows) == 1 and not _chunked(model, seen) else ""
    )
    share = (
        f", {seen.reach / seen.context:.0%} of {seen.context:,}" if seen.context and seen.reach < seen.context else ""
    )
    return f"{seen.reach:,} tokens in theory{formula}{share}{carried}"


def _chunked(model: Model, seen: Sight) -> bool:
    return any(model.layers[index].kind == "chunked" for index in seen.bounded)


def _everything(seen: Sight) -> str:
    if not seen.everything:
        return f"no layer of {len(seen.mixing)}"
    share = f"{len(seen.everything)} of {len(seen.mixing)} layers ({seen.share:.0%})"
    if len(seen.everything) == len(seen.mixing):
        return share
    return f"{share}: {spans(seen.everything)}; lowest {seen.lowest}, highest {seen.highest} of {seen.layers - 1}"


def _context(model: Model) -> str:
    if model.advertised_context is None:
        return "the config names none"
    words = f"{model.advertised_context:,} tokens advertised"
    if model.trained_context and model.trained_context != model.advertised_context:
        words += f", {model.trained_context:,} before RoPE scaling"
    return words


def _positions(model: Model) -> str:
    rope = model.rope
    if rope.kind == "none":
        return "no RoPE"
    base = f", base {rope.theta:,.0f}" if rope.theta else ""
    local = (
        f" ({rope.local_theta:,.0f} in sliding layers)" if rope.local_theta and rope.local_theta != rope.theta else ""
    )
    factor = f", factor {rope.factor:g}" if rope.factor else ""
    partial = f", {rope.partial:.0%} of each head" if rope.partial < 1 else ""
    without = sum(layer.rope == "none" for layer in model.layers if layer.heads)
    nope = (
        f"; none in {without} of {sum(bool(layer.heads) for layer in model.layers)} attention layers" if without else ""
    )
    return f"RoPE {rope.kind}{base}{local}{factor}{partial}{nope}"


def _cache(model: Model, seen: Sight) -> dict[str, str]:
    if not model.causal:
        return {"KV cache": "none between calls"}
    cost = kv_cost(model, seen.context or 1 << 30)
    at = f", {gb(cost.total_bytes)} at {seen.context:,} tokens" if seen.context else ""
    bounded = f", and {kib(cost.bounded_bytes)} that are bounded" if cost.bounded_bytes else ""
    return {"KV cache": f"{kib(cost.growing_bytes_per_token)} for each token (bf16){bounded}{at}"}
