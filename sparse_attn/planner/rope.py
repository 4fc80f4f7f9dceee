"""Position encoding as a config states it: base, scaling, and the context that it was scaled from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fields import Fields
from .records import Rope

_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "seq_length",
    "context_length",
    "model_max_length",
)


def read_rope(f: Fields, default_theta: float | None, default_local: float | None = None) -> Rope:
    """`rope_parameters` (flat, or one entry per layer type), or `rope_scaling` and `rope_theta`."""
    if default_theta is None and not f.given("rope_theta", "rope_parameters", "rope_scaling"):
        return Rope("none", source="no RoPE field")
    given = f.value("rope_parameters", default=None)
    source = "rope_parameters"
    if given is None:
        given, source = f.value("rope_scaling", default=None), "rope_scaling"
    if given is not None and not isinstance(given, Mapping):
        raise f.fail(f"{source} must be an object or null, got {given!r}")
    whole: Mapping[str, Any] = given or {}
    full = _for_full_layers(whole)
    local = _number(f, _for_sliding_layers(whole).get("rope_theta"), "rope_theta")
    theta = _number(f, full.get("rope_theta"), "rope_theta") or f.number("rope_theta", "rotary_emb_base")
    kind = full.get("rope_type", full.get("type", "default"))
    if not isinstance(kind, str):
        raise f.fail(f"{source}: rope_type must be a text, got {kind!r}")
    original = full.get("original_max_position_embeddings")
    if original is None:
        original = f.config.get("original_max_position_embeddings") or f.config.get("initial_context_length")
    factor = _number(f, full.get("factor"), "factor")
    if factor is not None and factor <= 0:
        raise f.fail(f"{source}: factor must be positive, got {factor!r}")
    if original is not None and (isinstance(original, bool) or not isinstance(original, int | float) or original < 1):
        raise f.fail(f"original_max_position_embeddings must be a positive whole number, got {original!r}")
    partial = _number(f, full.get("partial_rotary_factor"), "partial_rotary_factor")
    if partial is None:
        partial = f.number("partial_rotary_factor", "rotary_pct", default=1.0)
    return Rope(
        kind="longrope" if kind == "su" else kind,
        theta=theta or default_theta,
        local_theta=local if local is not None else f.number("rope_local_base_freq", default=default_local),
        factor=factor,
        original_context=None if original is None else int(original),
        partial=1.0 if partial is None else partial,
        source=source if given else "rope_theta",
    )


def read_context(f: Fields) -> int | None:
    """The advertised context: `max_position_embeddings`, or the name that the family gives it; None if there is none."""
    for name in _NAMES:
        if f.given(name):
            return f.maybe_whole(name)
    return f.maybe_whole("max_position_embeddings")


def _for_full_layers(rope: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("full_attention", "main", "default"):
        if isinstance(rope.get(name), Mapping):
            return rope[name]  # type: ignore[no-any-return]
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    return nested[0] if nested and "rope_theta" not in rope and "rope_type" not in rope else rope


def _for_sliding_layers(rope: Mapping[str, Any]) -> Mapping[str, Any]:
    local = rope.get("sliding_attention")
    return local if isinstance(local, Mapping) else {}


def _number(f: Fields, value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value in (float("inf"),):
        raise f.fail(f"{name} must be a finite number, got {value!r}")
    return float(value)
