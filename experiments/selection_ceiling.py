"""What a choice of blocks loses, layer by layer, and what the best choice would lose: on weights that long_facts.py kept.

    python experiments/selection_ceiling.py "keep/window + TopBlocks, taught-0.pt" --tokens 4096

For the queries that are asked, in every layer and head: the attention mass that lies outside the window, and the share of
it that the chosen blocks hold, chosen by the layer's selector, by the mean of a block's keys, or by the true mass. Then the
accuracy with each of the three, all queries choosing so.
"""

import argparse
from pathlib import Path

import torch
from coarse_selector import CoarseSelector
from long_facts import VARIANTS, Sizes, model_of, pattern_at, use
from torch import Tensor

from sparse_attn.models import LanguageModel
from sparse_attn.nn import BlockSelector
from sparse_attn.ops import select_blocks
from sparse_attn.ops.anchors import pool_blocks
from sparse_attn.ops.select_blocks import best_blocks, candidate_blocks, static_interval
from sparse_attn.patterns.chosen import split_choice
from sparse_attn.patterns.documents import Document
from sparse_attn.training import FactChains, accuracy

CHOICES = ("own", "mean", "mass")


class Observed(CoarseSelector):
    """Chooses as `chooses` says, and notes for the queries `asked` what each way of choosing would hold."""

    chooses = "own"
    gated = True
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
        if self.chooses == "mean":
            chosen = mean
        if self.chooses == "mass":
            parts = []
            for some in torch.arange(q.shape[1], device=q.device).split(1024):
                mass, allowed = self.mass(q, some[None].expand(len(q), -1))
                parts.append(best_blocks(mass, allowed, own.shape[-1]).transpose(1, 2))
            chosen = torch.cat(parts, 1)
        return (coarse if self.gated else 0.0 * coarse), chosen

    def mass(self, q: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, H, Q, blocks]``: exact attention's mass in each candidate block, and which are candidates (alike in a batch)."""
        tokens, heads, size = q.shape[1:]
        some = q.gather(1, at[:, :, None, None].expand(-1, -1, heads, size)).transpose(1, 2) * size**-0.5
        logits = some @ self._keys.permute(0, 2, 3, 1).to(some.dtype)
        logits = logits.masked_fill(torch.arange(tokens, device=q.device) > at[:, None, :, None], float("-inf"))
        mass = logits.float().softmax(-1).unflatten(-1, (-1, self.block)).sum(-1)
        choice = split_choice(self.pattern)
        assert choice is not None
        interval, document = static_interval(self.pattern, True), Document(0, tokens, 0, tokens)
        allowed = candidate_blocks(choice, interval, document, slice(0, tokens), causal=True, device=q.device)[at[0]]
        return mass * allowed, allowed.expand(heads, -1, -1)


def observed(model: LanguageModel, gated: bool) -> list[Observed]:
    found = []
    for module in model.modules():
        if isinstance(module, BlockSelector):
            module.__class__ = Observed
            module.notes, module.gated = [], gated
            found.append(module)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--variant", default="window + TopBlocks, taught", help="whose pattern is looked through")
    parser.add_argument("--pattern", help="another pattern, as it is at --tokens")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--hops", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--choices", nargs="*", default=list(CHOICES))
    parser.add_argument("--ungated", action="store_true", help="leave the coarse attention out")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes, text = Sizes(args.tiny), args.pattern or pattern_at(VARIANTS[args.variant], args.tokens)
    model = model_of(text, 0, sizes)
    missing = model.load_state_dict(torch.load(args.weights, map_location="cpu"), strict=False).missing_keys
    model, selectors = model.to(device).eval(), observed(model, not args.ungated and not missing)
    use(model, text)
    print(text, "without a trained selector" if missing else "")
    generator = torch.Generator(device).manual_seed(99)
    for hops in args.hops:
        batch = FactChains(args.tokens, hops, 16 // hops, 16 // hops).draw(args.documents, generator)
        for choice in args.choices:
            for selector in selectors:
                selector.chooses, selector.notes, selector.asked = choice, [], None
            answers = []
            for row in range(args.documents):
                for selector in selectors:
                    selector.asked = batch.at[row : row + 1]
                one = type(batch)(*(part[row : row + 1] for part in (batch.tokens, batch.at, batch.answers)))
                answers.append(accuracy(model, one))
            print(f"{hops} hops, chosen by {choice}: {sum(answers) / len(answers):.3f}", flush=True)
            for layer, selector in enumerate(selectors):
                outside, own, mean, best = torch.cat(selector.notes, 1).mean((1, 3)).unbind(0)
                heads = "  ".join(
                    f"{o:.2f}: {a / o:.3f} {m / o:.3f} {b / o:.3f}" if o > 0.02 else f"{o:.2f}: -".ljust(24)
                    for o, a, m, b in zip(outside.tolist(), own.tolist(), mean.tolist(), best.tolist(), strict=True)
                )
                print(f"   layer {layer}, outside: own mean best  {heads}", flush=True)


if __name__ == "__main__":
    main()
