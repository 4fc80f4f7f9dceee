"""What a window, sinks and a correction of rank r keep of a real model's dense attention: JSON, a picture, and a table.

    PYTHONPATH=. python scripts/low_rank_view.py --tokens 512 --window 64 --out benchmarks/results/cpu/low_rank

Reads the beginning of the book that comes with the package. Writes OUT.json and OUT.png.
"""

import argparse
import json
from pathlib import Path

import torch

from sparse_attn.analysis import attention_maps, low_rank_view
from sparse_attn.evals.book import book_text
from sparse_attn.hf import load_model
from sparse_attn.reports.low_rank_chart import draw_low_rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", help="a folder with weights, or a GGUF file; by default the embedded model")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 10, 20, 29])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--sinks", type=int, default=4)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    # The first pages are a contents list: the text proper begins some thousand characters in.
    tokens = torch.tensor(
        tokenizer.encode(book_text()[4000:], add_special_tokens=False, verbose=False)[: options.tokens]
    )
    views = {}
    for layer, weights in attention_maps(model, tokens, options.layers).items():
        view = low_rank_view(weights, window=options.window, sinks=options.sinks)
        views[f"layer {layer}"] = view.as_json()
        print(f"layer {layer}: head, outside, of that sinks, caught of the rest by rank {view.ranks}")
        for nth, head in enumerate(view.heads):
            caught = " ".join(f"{share:.2f}" for share in head.mass_behind_sinks)
            print(f"{nth:>3} {head.outside:.3f} {head.sinks / max(head.outside, 1e-9):.2f}  {caught}")
    name = Path(options.model).name if options.model else "SmolLM2-135M-Instruct"
    result = {"model": name, "text": "War and Peace, book one", "views": views}
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw_low_rank(
        views, options.out.with_suffix(".png"), title=f"{name}: what lies outside a window, and what rank r catches"
    )


if __name__ == "__main__":
    main()
