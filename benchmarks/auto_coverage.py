"""What `sparsify(model, "auto")` keeps of a real model: perplexity, needles and pairs against the same model dense.

    python benchmarks/auto_coverage.py --length 4096 --depth 0.1 --depth 0.5 --coverage 0.94

reads prompts of War and Peace with a needle (`sparse-attn demo` reads the same), dense and at each coverage, and
writes benchmarks/results/cpu/auto_coverage.json after every reading; a later run adds to the file what it lacks.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from datetime import date
from pathlib import Path

import torch
import transformers

from sparse_attn import __version__
from sparse_attn.evals.book import book_text, is_heading, paragraphs
from sparse_attn.evals.comparison import ANSWER_TOKENS, needle_prompts
from sparse_attn.evals.needle import is_found
from sparse_attn.hf import load_default
from sparse_attn.hf.measure import HfReader
from sparse_attn.patterns.covering import COVERAGE, auto


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, action="append", help="tokens of a prompt; may be repeated")
    parser.add_argument("--depth", type=float, action="append", help="where the needle stands, 0 to 1; may be repeated")
    parser.add_argument("--coverage", type=float, action="append", help="may be repeated")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (then results/cuda/)")
    given = parser.parse_args()
    out = Path(__file__).parent / "results" / given.device / "auto_coverage.json"
    out.parent.mkdir(exist_ok=True)
    result = json.loads(out.read_text()) if out.is_file() else {"cells": []}
    result |= {
        "model": "SmolLM2-135M-Instruct.Q4_1, float32",
        "text": "War and Peace, Book One",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"sparse_attn": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "date": date.today().isoformat(),
    }
    model, tokenizer = load_default()
    reader = HfReader(model.to(given.device), tokenizer)
    text = [paragraph for paragraph in paragraphs(book_text()) if not is_heading(paragraph)]
    rows: list[float | None] = [None, *(given.coverage or [COVERAGE])]
    for length in given.length or [4096]:
        depths = given.depth or [0.1, 0.5]
        for depth, prompt in zip(depths, needle_prompts(reader, text, [length], depths)[length], strict=True):
            for coverage in rows:
                name = {"length": length, "depth": depth, "coverage": coverage}
                if any(name.items() <= cell.items() for cell in result["cells"]):
                    continue
                pattern = [None if coverage is None else repr(auto(coverage))] * reader.layers
                reader.attend(pattern)
                reading = reader.read(prompt.tokens, scored=prompt.text, answer_tokens=ANSWER_TOKENS)
                cost = reader.cost(pattern, length)
                result["cells"].append(
                    name
                    | {
                        "perplexity": math.exp(reading.surprise / reading.scored_tokens),
                        "scored_tokens": reading.scored_tokens,
                        "kept_share": (reader.last_pairs or cost.kept_pairs) / cost.dense_pairs,
                        "found": is_found(prompt.secret, reading.answer),
                        "answer": reading.answer,
                    }
                )
                out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
                print(result["cells"][-1], flush=True)


if __name__ == "__main__":
    main()
