"""Write `sparse_attn/planner/class_defaults.json`: the defaults of transformers' config classes, as data.

A published config leaves out what equals its class's default, so the planner must know the defaults, without
importing transformers. Run it after an upgrade: ``python scripts/planner_defaults.py``; a test holds the file to the
installed library.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent.parent / "sparse_attn" / "planner" / "class_defaults.json"
_LEFT_OUT = (
    "token_id",
    "dropout",
    "initializer",
    "_act",
    "activation",
    "aux_loss",
    "use_cache",
    "torchscript",
    "label",
    "pdrop",
)
_BASE = (
    "output_hidden_states",
    "return_dict",
    "dtype",
    "chunk_size_feed_forward",
    "architectures",
    "transformers_version",
)


def defaults_of(model_type: str) -> dict[str, Any]:
    """The fields with a plain default of one config class, and its other names for them."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    fields = {
        field.name: field.default
        for field in dataclasses.fields(config_class)
        if isinstance(field.default, bool | int | float | str)
        and field.name not in _BASE
        and not any(word in field.name for word in _LEFT_OUT)
    }
    theta = getattr(config_class, "default_theta", 10000.0)
    theta, local = (theta.get("global"), theta.get("local")) if isinstance(theta, dict) else (theta, None)
    names = {field.name for field in dataclasses.fields(config_class)}
    if not names & {"rope_parameters", "rope_theta", "rope_scaling"}:
        theta = None  # it rotates nothing
    return {"fields": fields, "aliases": dict(config_class.attribute_map), "theta": theta, "local_theta": local}


def build() -> dict[str, Any]:
    """The whole file's content."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    from sparse_attn.planner.families import MODEL_TYPES

    known = sorted(name for name in MODEL_TYPES if name in CONFIG_MAPPING_NAMES)
    return {
        "source": f"transformers {transformers.__version__}, configuration_*.py (Apache-2.0): default values only",
        "classes": {name: defaults_of(name) for name in known},
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(build(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(f"{OUT}\n")
