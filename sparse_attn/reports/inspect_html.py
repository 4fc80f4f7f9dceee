"""`inspect --html`: the stack as a picture, the findings and the figures, in one file that asks for nothing else."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from .._version import __version__
from ..planner import Finding, Layer, Model, Sight, kv_cost
from .inspect_table import facts
from .layer_strip import describe_layer, sorts
from .palette import KIND_COLOURS


def render(name: str, model: Model, seen: Sight, found: tuple[Finding, ...]) -> str:
    """The page as HTML text; whatever comes from the config is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folder = files(__package__)
    template = environment.from_string((folder / "inspect.html.j2").read_text(encoding="utf-8"))
    return template.render(
        name=name,
        version=__version__,
        css=(folder / "page.css").read_text(encoding="utf-8"),
        context=f"{seen.context:,} tokens" if seen.context else "a long context",
        cells=[
            {
                "colour": KIND_COLOURS[layer.kind],
                "share": f"{100 * share_seen(layer, seen.context):.2f}",
                "title": f"layer {layer.index}: {describe_layer(layer)}",
            }
            for layer in model.layers
        ],
        kinds=[
            {"colour": KIND_COLOURS[kind], "words": words, "count": count}
            for (kind, words), count in sorts(model).items()
        ],
        findings=found,
        facts=facts(model, seen),
        layers=_layers(model, seen),
    )


def share_seen(layer: Layer, context: int | None) -> float:
    """Which share of `context` tokens the last query sees in this layer itself; no context: a long one."""
    if layer.sees_everything:
        return 1.0
    if not layer.window:
        return 0.0
    return min(1.0, layer.window / context) if context else 0.0


def _layers(model: Model, seen: Sight) -> list[dict[str, Any]]:
    costs = {cost.index: cost for cost in kv_cost(model, seen.context or 1 << 30).layers}
    rows = []
    for layer in model.layers:
        cost = costs.get(layer.index)
        rows.append(
            {
                "index": layer.index,
                "colour": KIND_COLOURS[layer.kind],
                "kind": layer.kind,
                "recurrence": layer.recurrence or "",
                "window": f"{layer.window:,}" if layer.window else "",
                "heads": layer.heads or "",
                "kv_heads": layer.kv_heads or "",
                "head_dim": layer.head_dim or "",
                "rope": layer.rope if layer.heads else "",
                "per_token": f"{cost.bytes_per_token:,.6g}" if cost and cost.bytes_per_token else "",
                "bounded": f"{cost.bounded_bytes:,}" if cost and cost.bounded_bytes else "",
                "source": layer.source,
            }
        )
    return rows
