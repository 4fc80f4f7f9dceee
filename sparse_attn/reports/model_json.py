"""What `inspect --json` and `plan --json` print, as plain data; `model.schema.json` beside this file holds its form.

Keys are added between versions, never renamed or dropped. All bytes are whole bytes of the whole model, except under
`per_gpu`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from ..planner import Finding, Fit, KvCost, Model, Sight, kv_cost, weights_cost

FORMAT = 1
_FULL_RINGS = 1 << 30  # tokens after which every window and chunk is full


def schema() -> dict[str, Any]:
    """The JSON schema (draft 7) of all outputs."""
    text = (files(__package__) / "model.schema.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def inspect_json(name: str, model: Model, seen: Sight, found: tuple[Finding, ...]) -> dict[str, Any]:
    """A model's layers, costs at its advertised (or the asked) context, and findings; nothing about a GPU."""
    cost = kv_cost(model, seen.context or _FULL_RINGS)
    return {
        "format": FORMAT,
        "command": "inspect",
        **_model(name, model, seen, found),
        **_costs(model, cost, None, known=seen.context is not None),
        "fits": None,
        "max_context": None,
    }


def plan_json(
    name: str, model: Model, seen: Sight, found: tuple[Finding, ...], plan: Fit, weights: str | None = None
) -> dict[str, Any]:
    """The same, and how it fits; `weights` as it was asked for (None: as stored)."""
    whole = kv_cost(
        model, plan.context, batch=plan.batch, kv_dtype=plan.kv_dtype, accounting=plan.accounting
    )  # fmt: skip
    bounds = plan.bounds
    return {
        "format": FORMAT,
        "command": "plan",
        **_model(name, model, seen, found),
        **_costs(model, whole, weights),
        "gpu": {
            "name": plan.gpu.name,
            "memory_bytes": plan.gpu.memory_bytes,
            "bandwidth": _finite(plan.gpu.bandwidth),
            "source": plan.gpu.source,
        },
        "gpus": plan.gpus,
        "utilization": plan.utilization,
        "fits": plan.fits,
        "max_context": plan.max_context,
        "max_context_before_overhead": plan.max_context_before_overhead,
        "max_batch": plan.max_batch,
        "per_gpu": {
            "required_bytes": plan.required_bytes,
            "available_bytes": plan.available_bytes,
            "weights_bytes": plan.weights_bytes,
            "kv_bytes": plan.kv.total_bytes,
            "workspace_bytes": plan.workspace.total_bytes,
            "activations_bytes": plan.workspace.activations_bytes,
            "logits_bytes": plan.workspace.logits_bytes,
        },
        "remedies": [asdict(remedy) for remedy in plan.remedies],
        "bounds": {
            "kind": "lower bounds on time: bytes over bandwidth, FLOPs over the dense rate",
            "decode_seconds": _finite(bounds.decode_seconds),
            "decode_tokens_per_second": _finite(bounds.decode_tokens_per_second),
            "batch_tokens_per_second": _finite(bounds.batch_tokens_per_second),
            "prefill_seconds": _finite(bounds.prefill_seconds),
            "decode_bytes": bounds.traffic.total,
            "decode_flops": bounds.decode.total,
            "prefill_flops": bounds.prefill.total,
            "rate": _finite(bounds.rate),
            "rate_name": bounds.rate_name,
        },
        "notes": list(plan.notes),
    }


def _model(name: str, model: Model, seen: Sight, found: tuple[Finding, ...]) -> dict[str, Any]:
    run = seen.longest_run
    return {
        "name": name,
        "model_type": model.model_type,
        "family": model.family,
        "causal": model.causal,
        "advertised_context": model.advertised_context,
        "trained_context": model.trained_context,
        "rope": asdict(model.rope),
        "sight": {
            "context": seen.context,
            "layers": seen.layers,
            "mixing_layers": len(seen.mixing),
            "full_layers": list(seen.everything),
            "full_share": seen.share,
            "lowest_full_layer": seen.lowest,
            "highest_full_layer": seen.highest,
            "longest_run_without_full": None if run is None else {"first": run.first, "last": run.last},
            "reach": seen.reach,
        },
        "findings": [asdict(finding) for finding in found],
        "inert": [asdict(inert) for inert in model.inert],
        "assumed": [asdict(assumed) for assumed in model.assumed],
    }


def _costs(model: Model, cost: KvCost, weights: str | None, known: bool = True) -> dict[str, Any]:
    per_layer = {layer.index: layer for layer in cost.layers}
    held = weights_cost(model, weights)
    counted = model.parameters
    return {
        "layers": [
            {
                "index": layer.index,
                "kind": layer.kind,
                "window": layer.window,
                "heads": layer.heads,
                "kv_heads": layer.kv_heads,
                "head_dim": layer.head_dim,
                "value_dim": layer.value_dim,
                "recurrence": layer.recurrence,
                "rope": layer.rope,
                "rope_theta": layer.rope_theta,
                "mlp": layer.mlp,
                "sees_everything": layer.sees_everything,
                "shares_with": layer.shares_with,
                "bytes_per_token": per_layer[layer.index].bytes_per_token if layer.index in per_layer else 0,
                "bounded_bytes": per_layer[layer.index].bounded_bytes if layer.index in per_layer else 0,
                "source": layer.source,
            }
            for layer in model.layers
        ],
        "kv": {
            "accounting": cost.accounting,
            "dtype": cost.kv_dtype,
            "context": cost.context if known else None,
            "batch": cost.batch,
            "growing_bytes_per_token": cost.growing_bytes_per_token,
            "bounded_bytes": cost.bounded_bytes,
            "total_bytes": cost.total_bytes if known else None,
            "items": [asdict(item) for item in cost.items] if known else [],
            "notes": list(cost.notes),
        },
        "parameters": {"total": counted.total, "active": counted.active, "parts": dict(counted.parts)},
        "weights_dtype": held.dtype,
        "weights_bytes": held.total_bytes,
        "weights_source": held.source,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
