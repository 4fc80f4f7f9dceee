"""`sparse-attn bench`: the GPU kernels against their peers, each answer checked before it is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import print_json, results


def bench(
    out: Annotated[Path, typer.Option(help="Folder for <gpu>/attention.json and attention.png.")] = Path(
        "bench-results"
    ),
    only: Annotated[
        list[str] | None, typer.Option(help='Shapes whose name begins so, e.g. "window(2048) 32K D128"; repeatable.')
    ] = None,
    peers: Annotated[
        bool, typer.Option(help="Time PyTorch's attention, and flash-attn-4 if installed, beside ours.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results for a program to read.")] = False,
) -> None:
    """Time attention on this machine's GPU: forward, backward, memory.

    Results that the folder holds of other shapes, and of peers that are not timed again, stay, if they come from the same GPU
    and versions.

    Example: sparse-attn bench --only "window(2048) 32K" --no-peers
    """
    from ..reports.atomic import write_whole
    from ..reports.benchmark_chart import draw_benchmark
    from ..testing.gpu_benchmark import describe_row, folder_of, merged, run_benchmark

    result: dict[str, Any] = {}
    folder = out
    for found in run_benchmark(tuple(only or ()), peers=peers):
        folder = out / folder_of(found["gpu"])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "attention.json"
        result = merged(json.loads(path.read_text()), found) if path.exists() else found
        write_whole(path, json_text(result))
        if not as_json:
            results().print(describe_row(found["rows"][-1]), soft_wrap=True)
    draw_benchmark(result, folder / "attention.png")
    if as_json:
        print_json(result)
    else:
        results().print(f"written: {folder / 'attention.json'}, {folder / 'attention.png'}", soft_wrap=True)


def json_text(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=1) + "\n"
