"""The demo's results in a terminal: one table a length."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from .demo_result import DemoResult

MIB = 2**20


def length_table(result: DemoResult, length: int) -> Table:
    """Every row at one length."""
    table = Table(
        title=f"{length:,} tokens",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    table.add_column("row", min_width=16)
    for name in ("prefill", "kept pairs", "share", "KV cache", "perplexity", "needles"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in result.at_length(length):
        table.add_row(
            Text(cell["row"], style=result.colour(cell["row"])),
            f"{cell['prefill_seconds']:.2f} s",
            f"{cell['kept_pairs']:,}",
            f"{cell['kept_pairs'] / cell['dense_pairs']:.1%}",
            f"{cell['cache_bytes'] / MIB:.1f} MiB",
            f"{cell['perplexity']:.2f}",
            Text(" ").join(
                Text("✔", style="green") if needle["found"] else Text("✘", style="red") for needle in cell["needles"]
            ),
        )
    return table
