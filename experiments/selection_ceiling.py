"""How much of where exact attention would look the chosen blocks hold, layer by layer: on weights that long_facts.py kept.

    python experiments/selection_ceiling.py "keep/window + TopBlocks, taught-0.pt" --out experiments/results/selection.jsonl

For the queries that are asked, in every layer: the attention mass that lies outside the window, and the share of it in the
blocks chosen by the layer's selector (own), by the mean of a block's keys (mean), and by the mass itself (best), which no
choice can beat. Then the accuracy with the first and the last, all queries of all layers choosing so.
"""

import argparse
import json
from datetime import date
from pathlib import Path

import torch
from coarse_selector import CoarseSelector
from fact_variants import VARIANTS, Sizes, pattern_at, use
from long_facts import FACTS, SAME, model_of
from torch import Tensor

from sparse_attn.models import LanguageModel
from sparse_attn.nn import BlockSelector
from sparse_attn.nn.selection_loss import candidate_mass
from sparse_attn.ops import select_blocks
from sparse_attn.ops.anchors import pool_blocks
from sparse_attn.ops.select_blocks import best_blocks
from sparse_attn.training import Batch, FactChains, accuracy

CHOICES = ("own", "best")


class Observed(CoarseSelector):
    """Chooses as `chooses` says, and notes for the queries `asked` what each way of choosing would hold."""

    chooses = "own"
    asked: Tensor | None = None
    notes: list[Tensor]

    def compress(self, k: Tensor, v: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        self._keys, self._mean = k, pool_blocks(k, v, self.block)[0]
        return super().compress(k, v)

    def forward(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, **options: object) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        coarse, own = super().forward(x, q, k, v)
        mean = select_blocks(q, q, self.pattern, compressed=self._mean)
        if self.asked is not None:
            mass, allowed = self.mass(q, self.asked)
            width = own.shape[-1]
            best = best_blocks(mass, allowed, width)
            at = self.asked[:, :, None, None].expand(-1, -1, *own.shape[2:])
            held = [mass.sum(-1)]
            for chosen in (own.gather(1, at).transpose(1, 2), mean.gather(1, at).transpose(1, 2), best):
                held.append(mass.gather(-1, chosen.long().clamp(min=0)).masked_fill(chosen < 0, 0.0).sum(-1))
            self.notes.append(torch.stack(held))
        chosen = own
        if self.chooses == "best":
            parts = []
            for some in torch.arange(q.shape[1], device=q.device).split(1024):
                mass, allowed = self.mass(q, some[None].expand(len(q), -1))
                parts.append(best_blocks(mass, allowed, own.shape[-1]).transpose(1, 2))
            chosen = torch.cat(parts, 1)
        return coarse, chosen

    def mass(self, q: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, H, Q, blocks]``: exact attention's mass in each candidate block, and which are candidates (alike in a batch)."""
        mass, allowed = candidate_mass(q, self._keys, at, self.pattern, scale=q.shape[-1] ** -0.5)
        return mass, allowed[0].expand(q.shape[2], -1, -1)


def observed(model: LanguageModel) -> list[Observed]:
    found = []
    for module in model.modules():
        if isinstance(module, BlockSelector):
            module.__class__ = Observed
            module.notes = []
            found.append(module)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON is added")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--hops", type=int, default=4)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    variant, seed = args.weights.stem.rsplit("-", 1)
    text, sizes = pattern_at(VARIANTS[variant], args.tokens), Sizes(args.tiny)
    model = model_of(variant, text, 0, sizes)
    kept = torch.load(args.weights, map_location="cpu")
    if "about" not in kept:
        raise SystemExit(f"{args.weights} does not say how it was trained: train it anew with long_facts.py --keep")
    model.load_state_dict(kept["weights"])
    model, selectors = model.to(device).eval(), observed(model)
    use(model, text)
    task = FactChains(args.tokens, args.hops, FACTS // args.hops, FACTS // args.hops)
    batch = task.draw(args.documents, torch.Generator(device).manual_seed(99))
    line = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": str(torch.__version__),
            "date": date.today().isoformat(), **{key: kept["about"][key] for key in SAME},
            "variant": variant, "seed": int(seed), "pattern": text, "tokens": args.tokens, "hops": args.hops,
            "documents": args.documents, "accuracy": {}}  # fmt: skip
    for choice in CHOICES:
        answers = []
        for selector in selectors:
            selector.chooses, selector.notes = choice, []
        for row in range(args.documents):
            one = Batch(*(part[row : row + 1] for part in (batch.tokens, batch.at, batch.answers)))
            for selector in selectors:
                selector.asked = one.at
            answers.append(accuracy(model, one))
        line["accuracy"][choice] = round(sum(answers) / len(answers), 4)
        print(f"chosen by {choice}: {line['accuracy'][choice]}", flush=True)
        if choice == "own":
            line["layers"] = []
            for selector in selectors:
                outside, own, mean, best = torch.cat(selector.notes, 1).mean((1, 2, 3)).tolist()
                shares = {"outside": outside, "own": own / outside, "mean": mean / outside, "best": best / outside}
                line["layers"].append({name: round(share, 4) for name, share in shares.items()})
                print(line["layers"][-1], flush=True)
    with args.out.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
