"""Find the layers that must keep full attention, given a pattern for the others: where retrieval lives.

Layers are made sparse one after another. Each step tries the few layers that did least harm when they were last tried,
and keeps the one that does least now (a lazy greedy search). Harm is the surprise at a needle's digits when the right
answer is forced: it falls and rises smoothly where found-or-not jumps. Then the sets on the way are checked as the demo
checks them: needles answered in the model's own words, at several lengths and depths, and perplexity.

    python scripts/search_layer_mapping.py --out search.jsonl

Every measurement is a line of JSON in the file, and a line that is there is not measured again: stop and go on at will.
It reads some 450 prompts: on two cores that is an hour or two. With --device cuda --implementation reference, minutes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sparse_attn.evals.book import book_text, is_heading, paragraphs
from sparse_attn.evals.comparison import Row, compare, needle_prompts
from sparse_attn.evals.needle import NeedlePrompt, Wording
from sparse_attn.evals.reader import Reader

Layers = tuple[int, ...]


class Notebook:
    """Measurements by key, kept as lines of JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known: dict[str, Any] = {entry["key"]: entry["value"] for entry in map(json.loads, filter(None, lines))}

    def __getitem__(self, key: str) -> Any:
        return self.known[key]

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def write(self, key: str, value: Any) -> Any:
        line = json.dumps({"key": key, "value": value})
        with self.path.open("a") as file:
            file.write(line + "\n")
        self.known[key] = json.loads(line)["value"]  # the same today as when it is read tomorrow
        return self.known[key]


class Search:
    """The search for one model and pattern.

    Args:
        reader: Reads with the model.
        pattern: Of the layers that become sparse.
        notebook: What is known already, and where what is found is kept.
        length, depths: Of the prompts that harm is measured on.
        tries: Layers that each greedy step tries.
    """

    def __init__(
        self, reader: Reader, pattern: str, notebook: Notebook, length: int, depths: Sequence[float], tries: int
    ) -> None:
        self.reader, self.pattern, self.notebook = reader, pattern, notebook
        self.length, self.depths, self.tries = length, tuple(depths), tries
        self.text = [paragraph for paragraph in paragraphs(book_text()) if not is_heading(paragraph)]
        self.prompts = needle_prompts(reader, self.text, [length], self.depths)[length]

    def harm(self, sparse: Iterable[int]) -> float:
        """Mean surprise at a token of the secret, in nats, with these layers sparse."""
        layers = tuple(sorted(sparse))
        key = f"harm {self.pattern} {self.length} {self.depths} {layers}"
        if key in self.notebook:
            return float(self.notebook[key])
        self.reader.attend([self.pattern if layer in layers else None for layer in range(self.reader.layers)])
        total = count = 0.0
        for prompt in self.prompts:
            tokens, secret = with_answer(self.reader, prompt)
            reading = self.reader.read(tokens, scored=[secret], answer_tokens=0)
            total, count = total + reading.surprise, count + reading.scored_tokens
        return float(self.notebook.write(key, total / count))

    def path(self, progress: Progress) -> list[tuple[int, float]]:
        """Layers in the order in which they became sparse, each with the harm of all up to it."""
        everything = range(self.reader.layers)
        task = progress.add_task("one layer at a time", total=self.reader.layers)
        last_known = {}
        for layer in everything:
            last_known[layer] = self.harm([layer])
            progress.advance(task)
        task = progress.add_task("one layer after another", total=self.reader.layers)
        chosen: list[tuple[int, float]] = []
        while last_known:
            for layer in sorted(last_known, key=last_known.__getitem__)[: self.tries]:
                last_known[layer] = self.harm([layer, *(done for done, _ in chosen)])
            best = min(last_known, key=last_known.__getitem__)
            harm = self.harm([best, *(done for done, _ in chosen)])
            chosen.append((best, harm))
            del last_known[best]
            progress.advance(task)
        return chosen

    def check(
        self, sparse: Layers, lengths: Sequence[int], depths: Sequence[float], progress: Progress
    ) -> dict[str, Any]:
        """The demo's measurement of one mapping: needles and perplexity by length."""
        key = f"check {self.pattern} {tuple(lengths)} {tuple(depths)} {sparse}"
        if key in self.notebook:
            return dict(self.notebook[key])
        row = Row("mapping", self.pattern, tuple(layer for layer in range(self.reader.layers) if layer not in sparse))
        prompts = needle_prompts(self.reader, self.text, lengths, depths)
        task = progress.add_task(f"checking {len(sparse)} sparse layers", total=len(lengths) * len(depths))
        cells = list(compare(self.reader, [row], prompts, depths, lambda row, length: progress.advance(task)))
        return dict(self.notebook.write(key, {str(cell.length): asdict(cell) for cell in cells}))


def with_answer(reader: Reader, prompt: NeedlePrompt) -> tuple[list[int], range]:
    """A prompt with its right answer, and the positions of the secret's tokens."""
    tokens = [*prompt.tokens, *reader.encode(Wording().reply)]
    secret = reader.encode(f" {prompt.secret}")
    return tokens + secret, range(len(tokens), len(tokens) + len(secret))


def search(
    model: Annotated[str | None, typer.Option(help="As for `sparse-attn generate`; without it SmolLM2.")] = None,
    pattern: Annotated[str, typer.Option(help="Of the layers that become sparse.")] = "window(512) | sinks(4)",
    out: Annotated[Path, typer.Option(help="The measurements, a line of JSON each.")] = Path("layer_mapping.jsonl"),
    length: Annotated[int, typer.Option(help="Tokens of the prompts that guide the search.")] = 2048,
    tries: Annotated[int, typer.Option(help="Layers that each step tries.")] = 4,
    check: Annotated[str, typer.Option(help="Numbers of sparse layers to check.")] = "5,10,15,18,20,22,24,26",
    check_lengths: Annotated[str, typer.Option(help="Lengths to check at.")] = "1024,2048,4096",
    threads: Annotated[int, typer.Option(help="Threads that torch may use; 0: as it likes.")] = 0,
    device: Annotated[str, typer.Option(help="Where the model reads; a GPU takes minutes instead of an hour.")] = "cpu",
    implementation: Annotated[
        str | None, typer.Option(help="Of attention through patterns; 'reference' serves every device.")
    ] = None,
) -> None:
    """Search, check, and print the layers that each number of sparse layers leaves full."""
    import torch

    from sparse_attn.hf import load_model
    from sparse_attn.hf.measure import HfReader

    if threads:
        torch.set_num_threads(threads)
    loaded, tokenizer = load_model(model)
    reader = HfReader(loaded.to(torch.device(device)), tokenizer, implementation=implementation)
    # The last depth lies within the window of the question: it needs no full layer, and tells nothing about them.
    finder = Search(reader, pattern, Notebook(out), length, depths=(0.1, 0.4, 0.7), tries=tries)
    lengths = [int(number) for number in check_lengths.split(",")]
    sizes = [0, *(int(number) for number in check.split(",") if int(number) <= reader.layers)]
    with Progress(console=Console(stderr=True)) as progress:
        order = finder.path(progress)
        rows = [
            (size, finder.check(tuple(sorted(layer for layer, _ in order[:size])), lengths, (0.1, 0.5, 0.9), progress))
            for size in sizes
        ]
    print_findings(reader.layers, order, rows)


def print_findings(layers: int, order: list[tuple[int, float]], rows: list[tuple[int, dict[str, Any]]]) -> None:
    console = Console()
    console.print(
        "layers in the order of becoming sparse, with the harm of all so far (nats at a token of the secret):"
    )
    console.print(", ".join(f"{layer} ({harm:.3f})" for layer, harm in order))
    table = Table("sparse", "full layers", "secret", "pairs", "needles by length", "perplexity by length")
    for size, cells in rows:
        full = sorted(set(range(layers)) - {layer for layer, _ in order[:size]})
        found = [
            f"{sum(needle['found'] for needle in cell['needles'])}/{len(cell['needles'])}" for cell in cells.values()
        ]
        longest = list(cells.values())[-1]
        table.add_row(
            str(size),
            ",".join(map(str, full)),
            f"{math.exp(-order[size - 1][1]):.2f}" if size else "",
            f"{longest['kept_pairs'] / longest['dense_pairs']:.0%}",
            " ".join(found),
            " ".join(f"{cell['perplexity']:.2f}" for cell in cells.values()),
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(search)
