"""`plan --html`: one page to choose model, GPU, context and formats on. It carries the terms and adds them up itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from .._version import __version__
from ..planner import Fit, Memory, Model, allowed_splits, gpus, weights_cost
from ..planner.bill import bits_of
from ..planner.dtypes import KV_BITS
from .layer_strip import describe_layer
from .palette import KIND_COLOURS
from .plan_table import BAR_COLOURS
from .sizes import parameters

CHUNK = 2048  # tokens of a prefill step, `fit`'s default
WEIGHTS = ("bf16", "fp8", "int8", "int4", "nf4", "mxfp4", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")


def render(models: Sequence[tuple[str, Model]], plans: Sequence[Fit]) -> str:
    """The page as HTML text, set to what was asked for the first model."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folder = files(__package__)
    template = environment.from_string((folder / "plan.html.j2").read_text(encoding="utf-8"))
    return template.render(
        version=__version__,
        css=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "plan_page.js").read_text(encoding="utf-8"),
        data=in_script(page_data(models, plans)),
        bars=BAR_COLOURS,
    )


def in_script(value: object) -> str:
    """JSON that may stand inside <script>: nothing in it can end the element or open another."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(models: Sequence[tuple[str, Model]], plans: Sequence[Fit]) -> dict[str, Any]:
    """What the page's script adds up."""
    first = plans[0]
    cards = [{"name": gpu.name, "memory": gpu.memory_bytes} for gpu in gpus()]
    asked = {"name": first.gpu.name, "memory": first.gpu.memory_bytes}
    if asked not in cards:  # another memory than the card's
        asked["name"] = f"{first.gpu.name}, memory as given"
        cards.insert(0, asked)
    chosen = first.weights_dtype if first.weights_dtype in WEIGHTS else "stored"
    return {
        "chunk": CHUNK,
        "kv_bits": KV_BITS,
        "colours": KIND_COLOURS,
        "gpus": cards,
        "models": [_model(name, model) for name, model in models],
        "start": {
            "model": 0,
            "gpu": cards.index(asked),
            "gpus": first.gpus,
            "context": first.context,
            "batch": first.batch,
            "weights": "stored" if first.weights_bytes == _first_stored(models, first) else chosen,
            "kv": first.kv_dtype,
            "utilization": first.utilization,
        },
    }


def _first_stored(models: Sequence[tuple[str, Model]], first: Fit) -> int:
    from ..planner.tensor_parallel import weights_per_gpu

    return weights_per_gpu(models[0][1], None, first.gpus)


def _model(name: str, model: Model) -> dict[str, Any]:
    groups: dict[tuple[Memory, ...], int] = {}
    layers = [
        {
            "kind": layer.kind,
            "window": layer.window,
            "full": layer.sees_everything,
            "words": describe_layer(layer),
            "group": groups.setdefault(layer.memory if model.causal else (), len(groups)),
        }
        for layer in model.layers
    ]
    attention = max(
        2 * layer.heads * max(layer.head_dim, layer.value_dim) + 2 * layer.kv_heads * layer.head_dim
        for layer in model.layers
    )
    counted = model.parameters
    active = f", {parameters(counted.active)} active" if counted.active != counted.total else ""
    return {
        "name": name,
        "about": f"{model.model_type}, {len(layers)} layers, {parameters(counted.total)} parameters{active}",
        "advertised": model.advertised_context,
        "splits": [count for count in allowed_splits(model) if count & (count - 1) == 0 or count <= 8],
        "hidden": model.hidden_size,
        "vocab": model.vocab_size,
        "phase": max(attention, 3 * model.intermediate_size),
        "stored": weights_cost(model).dtype,
        "weights": {"stored": _weights(model, None)} | {dtype: _weights(model, dtype) for dtype in WEIGHTS},
        "layers": layers,
        "groups": [[_term(memory, model) for memory in terms] for terms in groups],
    }


def _weights(model: Model, dtype: str | None) -> dict[str, int]:
    cost = weights_cost(model, dtype)
    return {
        "total": cost.total_bytes,
        "listed": sum(size for _, _, size in cost.parts),
        "copied": sum(size for part, _, size in cost.parts if part in ("norms", "router")),
    }


def _term(memory: Memory, model: Model) -> dict[str, Any]:
    return {
        "elements": memory.elements,
        "per_token": memory.per_token,
        "limit": memory.limit,
        "every": memory.every,
        "remainder": memory.remainder,
        "grows": memory.grows,
        "heads": memory.heads,
        "bits": None if memory.precision == "kv" else bits_of(memory, model, "bf16"),
    }
