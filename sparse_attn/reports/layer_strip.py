"""A model's stack as a strip of cells, bottom to top: one colour and one letter a kind of layer."""

from __future__ import annotations

from collections import Counter

from rich.text import Text

from ..planner import Layer, Model
from .palette import KIND_COLOURS

LETTERS = {
    "full": "F",
    "latent": "L",
    "hybrid": "H",
    "indexed": "I",
    "sliding": "s",
    "chunked": "c",
    "linear": "r",
    "none": "-",
}
WORDS = {
    "full": "full attention",
    "latent": "full attention on latents (MLA)",
    "hybrid": "attention and a state side by side",
    "indexed": "attention to chosen keys",
    "sliding": "sliding window",
    "chunked": "chunks",
    "linear": "recurrent state",
    "none": "no mixing of tokens",
}


def strip(model: Model, *, width: int, colour: bool) -> Text:
    """The strip, wrapped to `width` cells; without colour letters tell the kinds, with it both do."""
    text = Text()
    left, right = "bottom ", " top"
    room = max(8, width - len(left) - len(right))
    cells = 2 if colour and 2 * len(model.layers) <= room else 1
    per_line = room // cells
    lines = [model.layers[start : start + per_line] for start in range(0, len(model.layers), per_line)]
    for number, line in enumerate(lines):
        text.append(left if number == 0 else " " * len(left), style="dim")
        for layer in line:
            style = f"bold #ffffff on {KIND_COLOURS[layer.kind]}" if colour else ""
            text.append(LETTERS[layer.kind].ljust(cells), style=style)
        text.append(right if number == len(lines) - 1 else "\n", style="dim")
    return text


def legend(model: Model, *, colour: bool) -> list[Text]:
    """One line for each sort of layer that the model has, the most frequent first."""
    lines = []
    for (kind, words), count in sorts(model).items():
        line = Text(" ")
        line.append(f" {LETTERS[kind]} ", style=f"bold #ffffff on {KIND_COLOURS[kind]}" if colour else "")
        line.append(f"  {count} x {words}")
        lines.append(line)
    return lines


def sorts(model: Model) -> dict[tuple[str, str], int]:
    """(kind, description) and how many layers are such, the most frequent first."""
    return dict(Counter((layer.kind, describe_layer(layer)) for layer in model.layers).most_common())


def describe_layer(layer: Layer) -> str:
    """What a layer attends with, in words.

    >>> describe_layer(Layer(0, "sliding", "sliding_window", window=4096, heads=32, kv_heads=8, head_dim=128))
    'sliding window of 4,096 tokens, 32 query and 8 KV heads of 128'
    """
    parts = [WORDS[layer.kind]]
    if layer.kind in ("sliding", "chunked"):
        parts[0] += f" of {layer.window:,} tokens"
    elif layer.kind == "indexed" and layer.window:
        parts[0] += f", at most {layer.window:,}"
    elif layer.kind == "hybrid" and not layer.recurrence:
        parts[0] = "attention to a window and to summaries"
    if layer.recurrence:
        parts[0] += f" ({layer.recurrence})"
    if layer.kind == "latent":
        parts.append(f"{layer.heads} query heads")
    elif layer.heads:
        parts.append(f"{layer.heads} query and {layer.kv_heads} KV heads of {layer.head_dim}")
    if layer.heads and layer.rope == "none":
        parts.append("no RoPE")
    return ", ".join(parts)
