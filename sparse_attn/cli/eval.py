"""`sparse-attn eval`: what a model still finds, combines and quotes through a pattern, against the same model dense."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evals.plan import PLACES, TASK_NAMES, Plan, even_depths
from ..evals.tasks import PROMPTS
from .console import print_json, progress_bar, remarks, results
from .eval_failures import failures
from .lists import layer_numbers, one_of
from .lists import lengths as token_lengths
from .lists import margin as a_margin
from .lists import patterns as pattern_texts
from .model import HELP, is_base_model, load
from .numbers import whole
from .pattern_option import Coverage, check_coverage, read_pattern

if TYPE_CHECKING:
    from ..hf.measure import HfReader

DEFAULT_PATTERNS = ("window(512) | sinks(4)", "window(512)")

EXAMPLES = """Examples:

[bold]sparse-attn eval[/bold]

[bold]sparse-attn eval --pattern "window(1024) | sinks(4)" --tasks needle,perplexity --html eval.html[/bold]

[bold]sparse-attn eval --model ./my-model --tasks needle,hops --samples 20 --out eval.jsonl --fail-if-worse 2%[/bold]"""


def evaluate(
    model: Annotated[str | None, typer.Option(help=HELP, show_default=False)] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            metavar="P[,P2...]",
            help="What each token may see; several with commas between them; auto: chosen for each head and text. Without "
            f"it: {', '.join(DEFAULT_PATTERNS)}.",
            show_default=False,
        ),
    ] = None,
    coverage: Coverage = None,
    full_layers: Annotated[
        str | None, typer.Option(help="Layers that stay dense all the same, e.g. '0,5,11'.", show_default=False)
    ] = None,
    tasks: Annotated[
        Any, typer.Option(parser=one_of(*TASK_NAMES), metavar="NAMES", help=f"Any of {', '.join(TASK_NAMES)}.")
    ] = "needle",
    lengths: Annotated[
        Any, typer.Option(parser=token_lengths, metavar="N,...", help="Tokens of the prompts; k is 1,024.")
    ] = "1k,2k,4k",
    depths: Annotated[
        int, typer.Option(parser=whole(1, 101), metavar="N", help="Places of the facts, evenly over the text.")
    ] = 5,
    samples: Annotated[
        int, typer.Option(parser=whole(1, 100_000), metavar="N", help="Of each task, length and depth.")
    ] = 1,
    difficulty: Annotated[
        int, typer.Option(parser=whole(1, 4), metavar="N", help="Of each task that has so many levels.")
    ] = 1,
    prompt: Annotated[
        Any,
        typer.Option(
            parser=one_of(*PROMPTS), metavar="plain,verify", help="verify: quote and check the source before answering."
        ),
    ] = "plain",
    place: Annotated[
        Any,
        typer.Option(
            parser=one_of(*PLACES),
            metavar="start,middle,end",
            show_default=False,
            help="Compare these places of the same facts, instead of --depths.",
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A UTF-8 text to hide facts in, instead of the book.", show_default=False)
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Ask without the chat template, as base models need it.")] = False,
    seed: Annotated[int, typer.Option(parser=whole(0, 2**63 - 1), metavar="N", help="Of all samples.")] = 0,
    batch_tokens: Annotated[
        int, typer.Option(parser=whole(1), metavar="N", help="The most tokens of prompts read at once.")
    ] = 8192,
    device: Annotated[str, typer.Option(help="Where the model reads: cpu, or cuda.")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Keep results in this JSON-lines file as they come; a run that was stopped goes on there.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report to this HTML file.", show_default=False)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of tables.")] = False,
    fail_if_worse: Annotated[
        float | None,
        typer.Option(
            parser=a_margin,
            metavar="2%",
            show_default=False,
            help="Exit with 1 if a pattern is worse than dense by more than this, and with 3 if that cannot be told.",
        ),
    ] = None,
) -> None:
    """Measure what a model keeps through a pattern, on the same samples as the model dense."""
    from ..evals.runner import plan_rows
    from ..reports.atomic import check_writable

    for path in (html, markdown):
        if path is not None:
            check_writable(path)  # now, not after minutes of work
    if out is not None:
        _check_appendable(out)
    _check_apart(out=out, html=html, markdown=markdown)
    texts = pattern_texts(pattern or list(DEFAULT_PATTERNS))
    check_coverage(texts, coverage)
    chosen = [repr(read_pattern(given, coverage)) for given in texts]
    plan = Plan(
        tasks=tuple(_read(tasks, one_of(*TASK_NAMES))),
        lengths=tuple(_read(lengths, token_lengths)),
        depths=even_depths(depths) if place is None else tuple(PLACES[name] for name in place),
        samples=samples,
        rows=plan_rows(chosen, sorted(layer_numbers(full_layers))),
        difficulty=difficulty,
        prompts=tuple(_read(prompt, one_of(*PROMPTS))),
        places=place is not None,
        seed=seed,
        batch_tokens=batch_tokens,
    )
    paragraphs = None if text is None else _paragraphs(text)
    _check_device(device)
    loaded, tokenizer = load(model)
    if is_base_model(model) and not raw:
        raw = True
        remarks().print(f"{model} is a base model: it is asked without a chat template", style="dim", markup=False)
    if not raw and not tokenizer.chat_template:
        raise ValueError("the model's tokenizer has no chat template: use --raw to ask without one")
    from ..hf.measure import HfReader

    reader = HfReader(loaded.to(device) if device != "cpu" else loaded, tokenizer, raw=raw)
    name = model or "SmolLM2-135M-Instruct (Q4_1)"
    summary = measure(reader, plan, name, text=paragraphs, out=out, margin=fail_if_worse)
    _write_reports(summary, html, markdown)
    if as_json:
        print_json(summary)
    else:
        _print(summary, html)
    if fail_if_worse is not None and summary["verdict"]["status"]:
        for reason in summary["verdict"]["reasons"]:
            remarks().print(reason, soft_wrap=True, markup=False)
        raise typer.Exit(summary["verdict"]["status"])


evaluate.__doc__ = f"{evaluate.__doc__}\n\n{EXAMPLES}"


def _check_appendable(path: Path) -> None:
    """As `check_writable`, but a file that exists is added to where it is: its folder need not be writable."""
    from ..reports.atomic import check_writable

    if path.is_file():
        path.open("ab").close()
    else:
        check_writable(path)


def _check_apart(**paths: Path | None) -> None:
    """Refuse one file for two purposes: a report would take the place of the results."""
    names: dict[Path, str] = {}
    for option, path in paths.items():
        if path is not None and (first := names.setdefault(path.resolve(), option)) != option:
            raise ValueError(f"--{first} and --{option} name the same file, {path}: give each its own")


def _check_device(given: str) -> None:
    """Refuse a device that is not there, before the model loads."""
    if given == "cpu":
        return
    if re.fullmatch(r"cuda(:\d+)?", given) is None:
        raise ValueError(f"--device must be cpu, cuda, or one of several as cuda:1, got {given!r}")
    import torch

    found = torch.cuda.device_count()
    if int(given.partition(":")[2] or 0) >= found:
        raise ValueError(f"--device {given}: PyTorch finds {found or 'no'} CUDA device{'s' * (found > 1)} here")


def _read(given: Any, parser: Any) -> Any:
    """An option's value, also where it is a default that typer handed on as text."""
    return parser(given) if isinstance(given, str) else given


def _paragraphs(path: Path) -> list[str]:
    from ..evals.book import paragraphs
    from .generate import prompt_text

    return paragraphs(prompt_text(path, None))


def measure(
    reader: HfReader, plan: Plan, model: str, *, text: list[str] | None, out: Path | None, margin: float | None
) -> dict[str, Any]:
    """Run a plan with a progress bar on stderr, and give its summary, with failures and their views."""
    from ..evals.corpus import Corpus
    from ..evals.results_file import ResultsFile
    from ..evals.runner import run
    from ..evals.summary import summarize

    start = time.perf_counter()
    corpus = Corpus(reader, text)
    plan.check(corpus, reader)
    kept = ResultsFile(out, {"model": model, "seed": plan.seed, "frame": list(reader.chat_frame())})
    held = len(kept.entries)
    if kept.dropped:
        remarks().print(
            f"{out}: the last line was cut and is read again; all others are kept", style="dim", markup=False
        )
    with progress_bar() as progress:
        task = progress.add_task("reading", total=sum(length * (1 + length / 6000) for length in plan.readings))
        done = 0.0

        def announce(what: str, tokens: int) -> None:
            nonlocal done
            length = int(what.split(",", 1)[1].split(" tokens")[0].replace(",", ""))
            progress.update(task, completed=done, description=what)
            done += tokens * (1 + length / 6000)

        entries = run(reader, corpus, plan, kept, announce)
    summary = summarize(plan, entries, margin=margin)
    seconds = f"{time.perf_counter() - start:.0f} s" + (f", after {held} results that the file held" if held else "")
    about = _about(model, reader, plan, corpus, seconds)
    return {"about": about, **summary, "failures": failures(reader, plan, entries)}


def _about(model: str, reader: HfReader, plan: Plan, corpus: Any, seconds: str) -> dict[str, str]:
    import platform
    from datetime import datetime

    import torch
    import transformers

    from .._version import __version__
    from ..evals.book import TITLE

    return {
        "model": f"{model}, {reader.layers} layers",
        "text": TITLE if corpus.own is None else "the text that was given",
        "samples": f"{plan.samples} of each task, length and depth; seed {plan.seed}",
        "date": datetime.now().astimezone().isoformat(" ", "minutes"),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "versions": f"sparse-attn {__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}",
        "measured in": seconds,
    }


def _write_reports(summary: dict[str, Any], html: Path | None, markdown: Path | None) -> None:
    from ..reports.atomic import write_whole

    if html is not None:
        from ..reports.eval_html import render

        write_whole(html, render(summary))
    if markdown is not None:
        from ..reports.eval_markdown import render_markdown

        write_whole(markdown, render_markdown(summary))


def _print(summary: dict[str, Any], html: Path | None) -> None:
    from rich.markdown import Markdown

    from ..reports.eval_markdown import render_markdown

    results().print(Markdown(render_markdown(summary)))
    if html is not None:
        results().print(f"report: {html}", soft_wrap=True)
