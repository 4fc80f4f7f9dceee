"""`sparse-attn plan`: what a model's weights and cache take on a GPU, from its config alone. Needs no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import results
from .lists import layer_numbers
from .numbers import length, memory, one_of, share, whole
from .pattern_option import read_pattern
from .plan_answer import USUAL_SHARE, Question, print_as_json, print_one, print_table

if TYPE_CHECKING:
    from ..patterns import Pattern
    from ..planner import Fit, Gpu, Model

DEFAULT_GPU = "a100-80gb"

EXAMPLES = """Examples:

[bold]sparse-attn plan path/to/config.json --gpu a100-80gb --context 256k[/bold]

[bold]sparse-attn plan A/config.json B/config.json --gpu rtx-4090 --weights int4 --kv fp8[/bold]

[bold]sparse-attn plan path/to/config.json --pattern 'window(4096) | sinks(4)' --full-layers 0,8,16[/bold]

[bold]sparse-attn plan A/config.json B/config.json --html plan.html[/bold]   (a page to drag the context on)"""


def plan(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A config.json, a folder with one, a GGUF file, or a model's id in the local Hugging Face cache; or several.",
        ),
    ],
    gpu: Annotated[
        str | None,
        typer.Option(
            help=f"The card, e.g. {DEFAULT_GPU}, h100, rtx-4090; {DEFAULT_GPU} if left out.", show_default=False
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(parser=whole(1, 1024), metavar="N", help="Cards that share the model.")] = 1,
    context: Annotated[
        int | None,
        typer.Option(
            parser=length,
            metavar="N",
            help="Tokens of a sequence, e.g. 256k; else what each config advertises.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(parser=whole(1, 1 << 20), metavar="N", help="Sequences at a time.")] = 1,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weight format: bf16, fp8, int8, int4, nf4, mxfp4 or a GGUF type such as Q4_K_M; else as stored.",
            show_default=False,
        ),
    ] = None,
    kv: Annotated[str, typer.Option(help="KV cache format: bf16, fp16, fp8, int8, int4.")] = "bf16",
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Let layers with full attention attend through this instead, e.g. 'window(4096) | sinks(4)'; auto: chosen in "
            "prefill for each head and text.",
            show_default=False,
        ),
    ] = None,
    full_layers: Annotated[
        str | None, typer.Option(help="Layers that stay full all the same, e.g. '0,5,11'.", show_default=False)
    ] = None,
    utilization: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="Share of the memory that may be used.")
    ] = USUAL_SHARE,
    gpu_memory: Annotated[
        int | None,
        typer.Option(
            parser=memory,
            metavar="SIZE",
            help="Take this much memory for the card's, e.g. 80GB or 24GiB.",
            show_default=False,
        ),
    ] = None,
    accounting: Annotated[
        str,
        typer.Option(
            parser=one_of("exact", "vllm", "transformers"),
            metavar="NAME",
            help="Count the cache exactly, or as vllm or transformers allocates it.",
        ),
    ] = "exact",
    assume: Annotated[
        str | None,
        typer.Option(
            parser=one_of("full"),
            metavar="full",
            show_default=False,
            help="Take every layer of an unknown model type for full attention.",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the configs (no weights) of models that are not in the cache.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a self-contained page to choose models, GPUs and lengths on.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say what a model needs on a GPU, whether it fits, how far its context goes, and what would help."""
    from ..reports.atomic import check_writable, write_whole
    from .model_source import name_of, resolve

    if html is not None:
        check_writable(html)
    card = _card(gpu, gpu_memory)
    used = card if gpu_memory is None else card.with_memory(gpu_memory)
    question = Question(used, gpus, context, batch, weights, kv, utilization, accounting)
    chosen, stay = _asked(pattern, full_layers, accounting)
    resolved = [(name_of(source), resolve(source, assume=assume, download=download)) for source in models]
    if chosen is not None:
        resolved = [_through(name, model, chosen, stay) for name, model in resolved]
    answers = [
        (name, model, _ask(source, question, model, len(models)))
        for source, (name, model) in zip(models, resolved, strict=True)
    ]
    if as_json:
        print_as_json(answers, weights)
    elif len(answers) == 1:
        print_one(*answers[0], card, question)
    else:
        print_table([(name, found) for name, _, found in answers], card, question)
    if gpu is None and gpu_memory is None and not as_json:
        results().print(f"no --gpu was given: {card.name} was taken", style="dim")
    if html is not None:
        from ..reports.plan_html import render

        write_whole(html, render([(name, model) for name, model, _ in answers], [found for _, _, found in answers]))
        if not as_json:
            results().print(f"page: {html}", soft_wrap=True, markup=False)


plan.__doc__ = f"{plan.__doc__}\n\n{EXAMPLES}"


def _asked(pattern: str | None, full_layers: str | None, accounting: str) -> tuple[Pattern | None, frozenset[int]]:
    """The pattern that full layers are to attend through, and those that stay full."""
    stay = layer_numbers(full_layers)
    if pattern is None:
        if stay:
            raise ValueError("--full-layers names layers that stay full beside a pattern, but no --pattern was given")
        return None, stay
    if accounting != "exact":
        raise ValueError(
            f"--accounting {accounting} counts what that engine allocates, and it knows no --pattern: leave one out"
        )
    return read_pattern(pattern), stay


def _through(name: str, model: Model, pattern: Pattern, stay: frozenset[int]) -> tuple[str, Model]:
    """The model with a pattern on its full layers but those that stay, and its name with the pattern's text beside it."""
    from ..planner import with_pattern

    full = {layer.index for layer in model.layers if layer.kind == "full"}
    if outside := sorted(stay - full):
        raise ValueError(f"--full-layers names layers {outside}, but {name} has no full attention there")
    if not full - stay:
        raise ValueError(f"--pattern: {name} has no layer with full attention left to attend through it")
    layers = f"{len(full - stay)} of {len(model.layers)} layers"
    return f"{name} through {pattern!r} in {layers}", with_pattern(model, pattern, layers=full - stay)


def _card(name: str | None, given: int | None) -> Gpu:
    """The named card; without a name the default, or a nameless one of the given memory, whose speed nobody knows."""
    from ..planner import Gpu, find_gpu

    if name is not None or given is None:
        try:
            return find_gpu(DEFAULT_GPU if name is None else name)
        except ValueError as error:
            raise ValueError(f"--{error}") from None
    return Gpu("unnamed GPU", (), given, math.nan, math.nan, None, "memory as given")


def _ask(source: str, question: Question, model: Model, many: int) -> Fit:
    try:
        return question.ask(model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}" if many > 1 else str(error)) from None
