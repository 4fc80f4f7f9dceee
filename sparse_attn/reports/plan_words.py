"""What a plan says in sentences: the answer, why it differs from published figures, remedies, bounds."""

from __future__ import annotations

import math

from ..planner import Fit, Gpu, Remedy
from .sizes import gb, seconds, tokens


def answer(plan: Fit) -> str:
    """Fits or not, and by how much."""
    cards = f"{plan.gpus} x {plan.gpu.name}, each" if plan.gpus > 1 else plan.gpu.name
    asked = f"{plan.context:,} tokens" + (f" x {plan.batch} sequences" if plan.batch > 1 else "")
    verdict = "fits" if plan.fits else "does not fit"
    return (
        f"{verdict}: {asked} need {gb(plan.required_bytes)} of the {gb(plan.available_bytes)} to be used on {cards} "
        f"({plan.utilization:.0%} of {gb(plan.gpu.memory_bytes)})"
    )


def capacity_notes(plan: Fit, card: Gpu, true: Fit | None) -> list[str]:
    """Why published figures differ: they take 10^9-byte gigabytes, all of them, and no workspace.

    Args:
        plan: What was asked.
        card: The GPU with the memory that its driver reports.
        true: The same plan on that memory with the usual share of it, where another memory was asked for; else None.
    """
    notes = [
        f"weights and cache alone are {gb(plan.weights_and_kv_bytes)}: published figures usually count no more, take a GB of "
        "memory for 10^9 bytes, and use all of it"
    ]
    if true is not None:
        notes.append(
            f"the memory of {gb(plan.gpu.memory_bytes)} is as given; a real {card.name} reports "
            f"{card.memory_bytes / 2**20:,.0f} MiB = {gb(card.memory_bytes)}, of which engines use {true.utilization:.0%} by "
            f"default: {gb(true.available_bytes)}, and there the same plan {'fits' if true.fits else 'does not fit'}, with at "
            f"most {tokens(true.max_context)} tokens"
        )
    return notes


def remedy_words(remedy: Remedy) -> tuple[str, str, str]:
    """What to set, what it brings, and its price."""
    options = {
        "kv": f"--kv {remedy.value}",
        "weights": f"--weights {remedy.value}",
        "gpus": f"--gpus {remedy.value}",
        "context": f"--context {remedy.value}",
        "batch": f"--batch {remedy.value}",
        "pattern": remedy.value,
    }
    set_to = options.get(remedy.change)
    if set_to is None:  # "kv and weights": "fp8 and int4"
        kv, _, weights = remedy.value.partition(" and ")
        set_to = f"--kv {kv} --weights {weights}"
    verdict = "fits" if remedy.fits else "not enough"
    most = "any context" if remedy.max_context is None else f"up to {remedy.max_context:,} tokens"
    brings = f"{verdict}: {gb(remedy.required_bytes)}" + (f", {most}" if remedy.max_context != 0 else "")
    return set_to, brings, remedy.price


def bound_words(plan: Fit) -> list[str]:
    """How fast at best. Lower bounds on time; nothing is measured."""
    bounds = plan.bounds
    if not math.isfinite(bounds.decode_seconds):
        return ["no bound on speed: --gpu names no card whose bandwidth and rate are known"]
    decode = f"decode at most {bounds.decode_tokens_per_second:,.1f} tokens/s for a sequence"
    if plan.batch > 1:
        decode += f", {bounds.batch_tokens_per_second:,.1f} for the batch"
    return [
        f"{decode} (bound: {gb(bounds.traffic.total)} read for each step over {plan.gpu.bandwidth / 1e9:,.0f} GB/s)",
        f"prefill of {plan.context:,} tokens at least {seconds(bounds.prefill_seconds)} (bound: "
        f"{_short(bounds.prefill.total / 1e12)} TFLOP over {bounds.rate / 1e12:,.0f} TFLOP/s dense {bounds.rate_name})",
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
