"""What `sparse-attn demo` compares: its rows, lengths and depths."""

from __future__ import annotations

from .comparison import Row

# Layers of SmolLM2-135M-Instruct that keep full attention in the last row: where its retrieval lives, found by
# scripts/search_layer_mapping.py with window(512) | sinks(4) (benchmarks/results/h100/layer_mapping.jsonl).
FULL_LAYERS: tuple[int, ...] = (7, 17, 18, 23)

# What `sparsify(model, "auto")` attends through; a test holds it to that.
AUTO = "window(64) | sinks(64) | coverblocks(0.94)"

ROWS = (
    Row("dense", None),
    Row("window", "window(512)"),
    Row("window + sinks", "window(512) | sinks(4)"),
    Row("window + sinks + strided", "window(512) | sinks(4) | strided(32)"),
    Row("window + sinks, some layers full", "window(512) | sinks(4)", FULL_LAYERS),
    Row("auto", AUTO, from_length=4096),  # shorter texts have too little to leave out
)

LENGTHS = (1024, 2048, 4096)
LONG_LENGTH = 8160  # the model's 8,192, less room for the answer
DEPTHS = (0.1, 0.5)  # far from the question; each more costs half the time again
