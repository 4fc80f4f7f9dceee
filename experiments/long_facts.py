"""Facts strewn over 16,384 tokens: what dense attention finds and what patterns at a fraction of its cost find.

    python experiments/long_facts.py --out experiments/results/long_facts.jsonl --seeds 0 1 2

One model of 6 layers for all tasks. For each seed a base is trained from scratch on short documents with
dense attention; then each variant goes on from that base with its own pattern, on longer and longer documents,
all with the same data, steps and rates. Tests ask at the end of 16,384 tokens:

    recall       one of 16 pairs
    multi_query  all 16 pairs
    two_hops     the ends of 8 chains of 2 pairs, from their first tokens
    four_hops    the ends of 4 chains of 4 pairs, from their first tokens

`far`: all pairs lie in the first 36% of the document, more than 10,000 tokens before the questions. `anywhere`: they lie
anywhere, as in training.
"""

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention_cost import share
from coarse_selector import faster, teach
from fact_variants import (
    BUDGET,
    FIRST_FOR,
    GATED,
    LESSON,
    ROUTED,
    TARGET,
    TAUGHT,
    VARIANTS,
    Sizes,
    attention_layer,
    pattern_at,
    use,
)
from routed_spending import spending

from sparse_attn.models import LanguageModel
from sparse_attn.nn import budget_terms
from sparse_attn.patterns import parse
from sparse_attn.training import Batch, FactChains, Recipe, Trainer, accuracy

FACTS = 16
FAR = 0.36
TESTS = (("recall", 1, 1, 192), ("multi_query", 1, 16, 32), ("two_hops", 2, 8, 64), ("four_hops", 4, 4, 192))
HOPS = (1, 2, 4)
TURNS = (4, 1, 4, 2)  # hops of the documents, step by step, once a base has learned on HOPS in turn
SAME = ("base", "base_rate", "planned_stages", "first", "rate", "quick")  # a run of another recipe is another run
QUICK = 20.0  # times the rate, for what only a variant has: it starts from nothing beside a base that is trained
ADDED = (".selector.", ".anchors.", ".router.")


def model_of(name: str, pattern: str, seed: int, sizes: Sizes) -> LanguageModel:
    torch.manual_seed(seed)
    mixers = [attention_layer(name, pattern, sizes) for _ in range(sizes.layers)]
    return LanguageModel(8192, sizes.width, mixers, kernel=4, mlp=sizes.mlp)


def tasks_of(tokens: int, batch: int) -> list[tuple[FactChains, int]]:
    """Documents of one, two and four hops in which every token that has a pair is asked for."""
    return [(FactChains(tokens, hops, FACTS // hops, FACTS), batch) for hops in HOPS]


def tests_of(tokens: int, share_of_documents: float, device: str) -> dict[str, Batch]:
    generator = torch.Generator(device).manual_seed(123456)
    found = {}
    for place, facts_in, part in (("far", FAR, 1.0), ("anywhere", 1.0, 0.5)):
        for name, hops, questions, documents in TESTS:
            task = FactChains(tokens, hops, FACTS // hops, questions, facts_in=facts_in)
            found[f"{name}, {place}"] = task.draw(max(1, int(documents * part * share_of_documents)), generator)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a run; runs found there are left out")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="names, or name=pattern")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--base",
        nargs="+",
        default=["128x128x2500", "512x32x1000", "1024x32x1000"],
        help="tokens x batch x steps, dense",
    )
    parser.add_argument("--base-rate", type=float, default=1e-3)
    parser.add_argument(
        "--stages", nargs="+", default=["1024x32x250", "4096x8x300", "16384x4x200"], help="of each variant"
    )
    parser.add_argument("--first", default="", help="a stage that the variants of --first-for begin with")
    parser.add_argument("--first-for", nargs="*", default=list(FIRST_FOR))
    parser.add_argument("--rate", type=float, default=2.5e-4)
    parser.add_argument("--tests", type=float, default=1.0, help="share of the test documents")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing that would not end by then")
    parser.add_argument("--keep", type=Path, help="a folder for trained weights")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    began = time.monotonic()
    sizes = Sizes(args.tiny)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    autocast = torch.bfloat16 if device == "cuda" else None
    base_stages, stages = parsed(args.base), parsed(args.stages)
    longest = stages[-1][0]
    tests = tests_of(longest, args.tests, device)
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    slowest = 0.0
    about = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": str(torch.__version__),
             "date": date.today().isoformat(), "planned_stages": args.stages, "first": args.first, "quick": QUICK, "turns": TURNS,
             "base": args.base, "base_rate": args.base_rate, "rate": args.rate,
             "width": sizes.width, "layers": sizes.layers, "heads": sizes.heads, "mlp": sizes.mlp, "tokens": longest}  # fmt: skip

    names = {
        (run["variant"], run["seed"], run.get("pattern"))
        for run in known
        if all(run.get(key) == about[key] for key in SAME)
    }

    def left() -> float:
        return args.seconds - (time.monotonic() - began)

    for seed in args.seeds:
        wanted = dict(v.split("=", 1) if "=" in v else (v, VARIANTS[v]) for v in args.variants)
        wanted = {name: text for name, text in wanted.items() if (name, seed, pattern_at(text, longest)) not in names}
        if not wanted or left() < slowest:
            continue
        base = model_of("dense", "full()", seed, sizes).to(device)
        tasks, order = plan_of(base_stages[:1], HOPS)
        later, after = plan_of(base_stages[1:])
        tasks, order = tasks + later, order + [len(tasks) + task for task in after]
        recipe = Recipe(len(order), args.base_rate, warmup=min(200, len(order) // 5), autocast=autocast)
        trainer = Trainer(base, tasks, recipe, order=order, seed=seed)
        losses = trained(trainer, began)
        short = tests_of(1024, args.tests, device) if not args.tiny else {}
        result = measured(base, short, autocast)
        weights = sum(p.numel() for p in base.parameters())
        print(
            f"base of seed {seed}: {weights:,} weights, {time.monotonic() - began:.0f} s, at 1,024 tokens {result}",
            flush=True,
        )
        with args.out.open("a") as file:
            line = about | {
                "variant": "base",
                "seed": seed,
                "weights": weights,
                "losses": losses,
                "tests_at_1024": result,
            }
            file.write(json.dumps(line) + "\n")
        del trainer
        if args.keep is not None:
            keep_weights(base, args.keep / f"base-{seed}.pt", about)
        for name, text in wanted.items():
            if left() < slowest:
                print(f"no time left for {name}, seed {seed}", flush=True)
                continue
            start = time.monotonic()
            line = {}
            gc.collect()  # a trainer's graphs hold their memory
            if device == "cuda":
                torch.cuda.empty_cache()
            keep = args.keep and partial(keep_weights, path=args.keep / f"{name}-{seed}.pt", about=about)
            for capture in (True, False):  # what the other variants found must not be lost by one that fails
                try:
                    own = [*parsed([args.first] if args.first and name in args.first_for else []), *stages]
                    line = extended(
                        base, name, text, seed, own, sizes, args.rate, autocast, tests, device, capture, keep
                    )
                    break
                except Exception as error:
                    print(f"{name}, seed {seed}, capture {capture}: {type(error).__name__}: {error}", flush=True)
                    traceback.print_exc(limit=-2)
            if not line:
                continue
            took = time.monotonic() - start
            slowest = max(slowest, took)
            line = about | priced(name, pattern_at(text, longest), longest, sizes, line) | {"seed": seed}
            line["seconds"] = round(took, 1)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"{name}, seed {seed}: {took:.0f} s {line['stage_seconds']}, {line['tests']}",
                flush=True,
            )


def extended(
    base: LanguageModel, name: str, text: str, seed: int, stages: list[tuple[int, ...]], sizes: Sizes, rate: float,
    autocast: torch.dtype | None, tests: dict[str, Batch], device: str, capture: bool,
    keep: Callable[[LanguageModel], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The base goes on through its pattern, one trainer over all stages, and is tested."""
    model = model_of(name, pattern_at(text, stages[-1][0]), seed, sizes)
    selectors = faster(model)
    lesson = teach(model, selectors) if name in TAUGHT else None

    def extra_loss(own: torch.nn.Module) -> torch.Tensor:
        assert lesson is not None
        taught = LESSON * lesson()
        return taught + BUDGET * budget_terms(own) if name in ROUTED else taught

    model = model.to(device)
    model.load_state_dict(base.state_dict(), strict=False)  # what only this pattern has starts as it was made
    tasks, order = plan_of(stages)
    recipe = Recipe(len(order), rate, warmup=50, quick=QUICK, autocast=autocast)
    trainer = Trainer(
        model, tasks, recipe, order=order, quick=ADDED, extra_loss=extra_loss if name in TAUGHT else None,
        seed=1000 + seed, capture=capture,
    )  # fmt: skip
    seconds, losses = [], []
    for tokens, _, steps in stages:
        start = time.monotonic()
        use(model, pattern_at(text, tokens))
        losses.append(trained(trainer, start, steps))
        seconds.append(round(time.monotonic() - start, 1))
        print(f"  {name}, {tokens} tokens: {seconds[-1]} s, {losses[-1]}", flush=True)
    begin = time.monotonic()
    model.eval()
    found = measured(model, tests, autocast)
    if keep is not None:
        keep(model)
    seconds.append(round(time.monotonic() - begin, 1))
    line = {"weights": sum(p.numel() for p in model.parameters()), "captured": capture, "stages": stages,
            "stage_seconds": seconds, "losses": losses, "tests": found}  # fmt: skip
    return line | {"spent": spending(model, tests, autocast)} if name in ROUTED else line


def priced(name: str, pattern: str, tokens: int, sizes: Sizes, line: dict[str, Any]) -> dict[str, Any]:
    """What a run says of its variant, with its share of dense FLOPs: a router's is what it spent, beside the most."""
    about: dict[str, Any] = {"variant": name, "pattern": pattern}
    heads = (sizes.heads, sizes.heads, sizes.head_dim)
    options = len(line["spent"]["options"]) if name in ROUTED else 0
    most = share(parse(pattern), tokens, *heads, gated=name in GATED, options=options)
    about["share_of_dense"] = round(most, 4)
    if name in TAUGHT:
        about["lesson"] = LESSON
    if name in ROUTED:
        pairs = line["spent"]["pairs"]
        own = share(parse(pattern), tokens, *heads, gated=name in GATED, options=options, pairs=pairs)
        about |= {"budget": BUDGET, "target": TARGET, "most_of_dense": round(most, 4), "share_of_dense": round(own, 4)}
    return about | line


def keep_weights(model: LanguageModel, path: Path, about: dict[str, Any]) -> None:
    """With their recipe, in half the room: enough to look at what was learned (`selection_ceiling.py`), not to go on from."""
    weights = {name: weight.half() for name, weight in model.state_dict().items()}
    torch.save({"about": about, "weights": weights}, path)


def parsed(stages: list[str]) -> list[tuple[int, ...]]:
    return [tuple(map(int, stage.split("x"))) for stage in stages]


def plan_of(
    stages: list[tuple[int, ...]], turns: tuple[int, ...] = TURNS
) -> tuple[list[tuple[FactChains, int]], list[int]]:
    """The tasks of all stages, and which of them each step takes: hops in turn."""
    tasks, order = [], []
    for index, (tokens, batch, steps) in enumerate(stages):
        tasks += tasks_of(tokens, batch)
        order += [index * len(HOPS) + HOPS.index(turns[step % len(turns)]) for step in range(steps)]
    return tasks, order


def trained(trainer: Trainer, began: float, steps: int | None = None) -> list[float]:
    losses = []
    end = trainer.recipe.steps if steps is None else trainer.done + steps
    while trainer.done < end:
        trainer.step()
        if trainer.done % 100 == 0 or trainer.done == end:
            losses.append(round(trainer.recent_loss(99), 4))
        if trainer.done % 1000 == 0:
            print(f"  {trainer.done} steps, {time.monotonic() - began:.0f} s, loss {losses[-1]}", flush=True)
    return losses


def measured(model: LanguageModel, tests: dict[str, Batch], autocast: torch.dtype | None) -> dict[str, float]:
    return {name: round(accuracy(model, batch, examples=8, autocast=autocast), 4) for name, batch in tests.items()}


if __name__ == "__main__":
    main()
