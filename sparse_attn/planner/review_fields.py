"""Rules about fields: those that do nothing, those that are missing, windows that hide nothing."""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Finding, Reviewed

# How `describe` begins these notes, or what is in them.
_OTHER_WEIGHTS = "the weight files hold"
_BESIDE = "only the language model is counted"
_ASSUMED = "was assumed to be full attention"


def inert_fields(r: Reviewed) -> Iterator[Finding]:
    """Fields that look important and do nothing."""
    for inert in r.model.inert:
        if inert.source == "max_position_embeddings" and r.sight.wide:
            continue  # `wide_windows` says it of the context that was asked for
        yield Finding("inert-field", "info", f"{inert.field}: {inert.value} is inert: {inert.reason}", inert.source)


def wide_windows(r: Reviewed) -> Iterator[Finding]:
    """Windows or chunks that are no shorter than the context."""
    if not r.sight.wide or r.context is None:
        return
    layers = [r.model.layers[index] for index in r.sight.wide]
    least = min(layer.window or 0 for layer in layers)
    yield Finding(
        "window-hides-nothing",
        "info",
        f"{len(layers)} layers have a {'chunk' if layers[0].kind == 'chunked' else 'window'} of {least:,} tokens, no less "
        f"than the context of {r.context:,}: at this length they see everything",
        f"field {layers[0].source.partition('[')[0]}",
    )


def assumed_layers(r: Reviewed) -> Iterator[Finding]:
    """A model type without a rule, taken for full attention because the caller said so."""
    if any(layer.source == "assumed" for layer in r.model.layers):
        yield Finding(
            "assumed-full",
            "warning",
            f"model_type {r.model.family} has no rule here: all {len(r.model.layers)} layers were taken for full attention "
            "because that was asked for, so every figure is a guess",
            "--assume full",
        )


def missing_fields(r: Reviewed) -> Iterator[Finding]:
    """Defaults that were taken for what the config leaves out."""
    doubtful = [one for one in r.model.assumed if one.doubtful]
    plain = [one for one in r.model.assumed if not one.doubtful]
    if doubtful:
        yield Finding(
            "missing-fields-doubtful",
            "warning",
            f"the config leaves out {_list(doubtful)}: the class's defaults were taken, but they belong to a model of another "
            "size, so that weights and cache may be wrong",
            _sources(doubtful),
        )
    if plain:
        yield Finding(
            "missing-fields",
            "info",
            f"the config leaves out {_list(plain)}: the class's defaults were taken",
            _sources(plain),
        )


def shared_layers(r: Reviewed) -> Iterator[Finding]:
    """Layers that read another layer's keys and values."""
    sharing = [layer for layer in r.model.layers if layer.shares_with is not None]
    if sharing:
        yield Finding(
            "shared-keys-and-values",
            "info",
            f"{len(sharing)} of {len(r.model.layers)} layers keep no cache of their own and read that of a lower layer",
            f"field {sharing[0].source.partition('[')[0]}, as transformers' class for {r.model.family} reads it",
        )


def other_weights(r: Reviewed) -> Iterator[Finding]:
    """Weight files that hold another number of parameters than the config amounts to."""
    beside = any(note.startswith(_BESIDE) for note in r.model.notes)  # parts that are not counted explain it
    for note in r.model.notes:
        if note.startswith(_OTHER_WEIGHTS):
            yield Finding(
                "weight-files-differ",
                "info" if beside else "warning",
                note,
                "config.json against the weight files' headers",
            )


def remarks(r: Reviewed) -> Iterator[Finding]:
    """What the family's rule has to say of the model or its layers."""
    layers = dict.fromkeys(layer.note for layer in r.model.layers if layer.note) if r.model.causal else {}
    for note in (*r.model.notes, *layers):
        if not note.startswith(_OTHER_WEIGHTS) and _ASSUMED not in note:  # said by rules of their own
            yield Finding("remark", "info", note, f"transformers' class for {r.model.family}")


FIELD_RULES = (assumed_layers, missing_fields, wide_windows, inert_fields, shared_layers, other_weights, remarks)


def _list(fields: list) -> str:  # type: ignore[type-arg]
    return ", ".join(f"{one.field} ({one.value})" for one in fields)


def _sources(fields: list) -> str:  # type: ignore[type-arg]
    return "; ".join(dict.fromkeys(one.source for one in fields))
