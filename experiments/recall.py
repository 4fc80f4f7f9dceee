"""Check the set-up against outside figures: the associative recall of Zoology and Based, through windows of several widths.

    python experiments/recall.py --out experiments/results/recall.jsonl

Two layers, the first a gated convolution, the second attention with one head and no positions, width 128, no MLP; trained
on the published mixture (64 to 256 tokens, 4 to 64 pairs) and tested on seven settings up to 1,024 tokens with 256 pairs,
whose mean accuracy is the figure (arXiv:2402.18668, figure 2). Examples are drawn anew instead of repeated 32 times.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from sparse_attn.evals.tasks.token_level import multi_query_recall
from sparse_attn.models import GatedConvolution, LanguageModel
from sparse_attn.nn import SparseSelfAttention
from sparse_attn.patterns import parse
from sparse_attn.training import Batch, MultiQueryRecall, Recipe, Trainer, accuracy, from_token_batch

TRAINED = ((64, 4), (128, 8), (256, 16), (256, 32), (256, 64))
ORDER = (0, 1, 0, 2, 0, 3, 0, 4, 0)  # 100,000 examples of the first to 20,000 of each other
TESTED = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
WIDTH, BATCH = 128, 256
# Theirs masks keys more than `block_size` back, so that a window of 64 is 65 keys.
PATTERNS = {"window 16": "window(17)", "window 64": "window(65)", "window 256": "window(257)", "full": "full()"}


def model_of(pattern: str, seed: int, width: int = WIDTH) -> LanguageModel:
    torch.manual_seed(seed)
    mixers = [GatedConvolution(width), SparseSelfAttention(width, 1, parse(pattern), rope_theta=None)]
    return LanguageModel(8192, width, mixers, kernel=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a run; runs found there are left out")
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--examples", type=int, default=1000, help="of each tested setting")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop training then, and test what there is"
    )
    args = parser.parse_args()
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    autocast = torch.bfloat16 if device == "cuda" else None
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    names = {(run["pattern"], run["rate"], run["seed"]) for run in known}
    runs: dict[tuple[str, float, int], Trainer] = {}
    for seed in args.seeds:
        for rate in args.rates:
            for name in args.patterns:
                if (name, rate, seed) in names:
                    continue
                tasks = [(MultiQueryRecall(tokens, pairs), args.batch) for tokens, pairs in TRAINED]
                recipe = Recipe(args.steps, rate, warmup=args.steps // 50, autocast=autocast)
                model = model_of(PATTERNS[name], seed).to(device)
                runs[name, rate, seed] = Trainer(model, tasks, recipe, order=ORDER, seed=seed)
    tests = [from_token_batch(multi_query_recall(args.examples, *size, seed=1)).to(device) for size in TESTED]
    print(f"{len(runs)} runs, {time.monotonic() - began:.1f} s to set up", flush=True)
    for step in range(args.steps):
        for trainer in runs.values():
            trainer.step()
        if step in (20, 60) or step % 500 == 499:
            losses = " ".join(f"{trainer.recent_loss():.2f}" for trainer in runs.values())
            print(f"{step + 1} steps, {time.monotonic() - began:.1f} s, losses {losses}", flush=True)
            if time.monotonic() - began > args.seconds:
                break
    trained = time.monotonic() - began
    for (name, rate, seed), trainer in runs.items():
        result = tested(trainer, tests, autocast)
        about = {"pattern": name, "rate": rate, "seed": seed, "steps": trainer.done, "planned": args.steps,
                 "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__,
                 "seconds_of_all": round(trained, 1)}  # fmt: skip
        with args.out.open("a") as file:
            file.write(json.dumps(about | result) + "\n")
        print(name, rate, seed, f"{result['accuracy']:.3f}", result["by_setting"], flush=True)


def tested(trainer: Trainer, tests: list[Batch], autocast: torch.dtype | None) -> dict[str, Any]:
    found = {}
    trainer.wait()
    for (tokens, pairs), batch in zip(TESTED, tests, strict=True):
        found[f"{tokens} tokens, {pairs} pairs"] = round(
            accuracy(trainer.model, batch, examples=128, autocast=autocast), 4
        )
    return {"accuracy": round(sum(found.values()) / len(found), 4), "by_setting": found, "loss": trainer.recent_loss()}


if __name__ == "__main__":
    main()
