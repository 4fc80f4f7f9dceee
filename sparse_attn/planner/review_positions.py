"""Rules about positions: trained, advertised and asked lengths, RoPE's scaling and base."""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Finding, Reviewed

_SCALING = {
    "linear": "Chen et al. 2023, arXiv:2306.15595 (position interpolation)",
    "dynamic": "transformers, modeling_rope_utils.py (dynamic NTK)",
    "yarn": "Peng et al. 2023, arXiv:2309.00071 (YaRN)",
    "longrope": "Ding et al. 2024, arXiv:2402.13753 (LongRoPE)",
    "llama3": "Llama 3 report, arXiv:2407.21783; transformers, modeling_rope_utils.py (llama3)",
}
_EFFECTIVE = "Hsieh et al. 2024, arXiv:2404.06654 (RULER: measured contexts are shorter than advertised ones)"


def beyond_advertised(r: Reviewed) -> Iterator[Finding]:
    """The asked context is longer than the model promises."""
    most = r.model.advertised_context
    if r.asked is None or most is None or r.asked <= most:
        return
    yield Finding(
        "context-beyond-advertised",
        "warning",
        f"{r.asked:,} tokens are asked for, {_times(r.asked, most)} times the advertised {most:,}: the model has not been shown "
        "positions beyond it, so that quality there is unknown",
        f"field max_position_embeddings; {_EFFECTIVE}",
    )


def scaled_rope(r: Reviewed) -> Iterator[Finding]:
    """Advertised against trained length, where RoPE is scaled."""
    rope, advertised, trained = r.model.rope, r.model.advertised_context, r.model.trained_context
    if rope.kind not in _SCALING or advertised is None or trained is None:
        return
    if advertised <= trained:
        if rope.factor and rope.factor > 1:
            yield Finding(
                "rope-scaled", "info",
                f"RoPE is scaled by {rope.factor:g} ({rope.kind}); the config does not say which part of the advertised "
                f"{advertised:,} tokens was trained before scaling",
                f"field {rope.source}; {_SCALING[rope.kind]}",
            )  # fmt: skip
        return
    factor = f" by {rope.factor:g}" if rope.factor else ""
    yield Finding(
        "rope-scaled",
        "warning" if rope.kind in ("linear", "dynamic") else "info",
        f"the advertised {advertised:,} tokens are {_times(advertised, trained)} times the {trained:,} before RoPE scaling"
        f"{factor} ({rope.kind}): whether the model was trained at the longer length is not in the config, and the scaling "
        "applies to short texts too unless the engine switches it",
        f"field {rope.source}; {_SCALING[rope.kind]}; {_EFFECTIVE}",
    )


def small_base(r: Reviewed) -> Iterator[Finding]:
    """RoPE's base below the bound that theory gives for the context, on layers that see that far."""
    if r.model.rope.kind != "default" or r.context is None or not r.model.causal:
        return
    seeing = [r.model.layers[index] for index in r.sight.everything]
    bases = [layer.rope_theta for layer in seeing if layer.rope_theta is not None and layer.rope == "rope"]
    needed = 0.0424 * r.context**1.628
    if not bases or min(bases) >= needed:
        return
    yield Finding(
        "rope-base-small",
        "info",
        f"RoPE's base of {min(bases):,.0f} is below the {needed:,.0f} that a fitted bound gives for {r.context:,} tokens: a "
        "layer that sees everything tells similar tokens from random ones less and less well with distance. The bound is "
        "theory for one head width, and models are sold below it: measure",
        f"field {r.model.rope.source}; Men et al. 2024, arXiv:2405.14591, figure 1 (0.0424 x tokens^1.628)",
    )


def no_positions(r: Reviewed) -> Iterator[Finding]:
    """Full layers without RoPE among layers with it."""
    seeing = [r.model.layers[index] for index in r.sight.everything]
    without = [layer for layer in seeing if layer.rope == "none"]
    others = any(layer.rope not in ("none", "") for layer in r.model.layers if layer.heads)
    if not without or not others:
        return
    yield Finding(
        "full-layers-without-rope",
        "info",
        f"{len(without)} of the {len(seeing)} layers that see everything have no RoPE: distance does not weaken what they "
        "find, and no position there is out of the trained range",
        "Yang et al. 2025, arXiv:2501.18795; Kazemnejad et al. 2023, arXiv:2305.19466",
    )


def no_advertised(r: Reviewed) -> Iterator[Finding]:
    """The config names no context."""
    if r.model.advertised_context is None:
        yield Finding(
            "no-advertised-context",
            "info",
            "the config names no longest context: what length the model was trained at stands elsewhere",
            "no max_position_embeddings or one of its other names",
        )


POSITION_RULES = (beyond_advertised, scaled_rope, small_base, no_positions, no_advertised)


def _times(longer: int, shorter: int) -> str:
    ratio = longer / shorter
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
