"""The learned selector in one call of PyTorch's attention: what `nn.BlockSelector` computes, fast enough to train with.

`compressed_attention` orders all of its weights in plain torch, which at 16,384 tokens takes most of a step. Where each
query and head choose for themselves, the order of weights is that of logits: the kernel that selects by them serves, and
the coarse attention itself is a masked product over a few hundred keys.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_attn.nn import BlockSelector
from sparse_attn.ops import select_blocks
from sparse_attn.ops.select_blocks import candidate_blocks, static_interval
from sparse_attn.patterns.chosen import split_choice
from sparse_attn.patterns.documents import Document


class CoarseSelector(BlockSelector):
    """`BlockSelector` for causal whole sequences, rows=1 and as many KV heads as query heads."""

    def forward(  # type: ignore[override]
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *, n_keys: int | None = None, causal: bool = True,
        cu_seqlens_q: Sequence[int] | None = None, cu_seqlens_k: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if not causal or cu_seqlens_q is not None or q.shape[2] != k.shape[2] or n_keys not in (None, q.shape[1]):
            raise NotImplementedError(
                "CoarseSelector takes causal whole sequences without grouped heads: use BlockSelector"
            )
        tokens, blocks = q.shape[1], k.shape[1]
        choice = split_choice(self.pattern)
        document = Document(0, tokens, 0, tokens)
        allowed = candidate_blocks(
            choice, static_interval(self.pattern, True), document, slice(0, tokens), causal=True, device=q.device
        )
        # One key more, of zeros, for queries without candidates: they get 0. And some that nobody sees, to a multiple of 8.
        mask = F.pad(torch.cat([allowed, ~allowed.any(1, keepdim=True)], 1), (0, -(blocks + 1) % 8))
        keys, values = (F.pad(t.to(q.dtype), (0, 0, 0, 0, 0, mask.shape[1] - blocks)).transpose(1, 2) for t in (k, v))
        coarse = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask).transpose(1, 2)
        with torch.no_grad():
            selected = select_blocks(q.detach(), q.detach(), self.pattern, compressed=k.detach())
        return coarse * torch.sigmoid(self.gate(x))[..., None], selected


class TaughtSelector(CoarseSelector):
    """The same, and a loss that teaches it: its coarse weights imitate where exact attention would look.

    p[b] = what block b gets of softmax(scale * q k) over all earlier keys;  c = softmax(scale * q c_k) over the candidates
    loss = sum_b p[b] (log(p[b] / sum p) - log c[b]), over the candidates b, mean over queries and heads

    p is a target: no gradient goes through it. It is computed for a few queries only, those at `asked`: the whole would
    cost what dense attention costs.

    Source: DeepSeek-V3.2's indexer, arXiv:2512.02556; SeerAttention, arXiv:2410.13276.
    """

    asked: Tensor | None = None  # [B, Q] positions of the queries that teach; None: no lesson
    loss: Tensor | None = None  # of the last forward pass

    def compress(self, k: Tensor, v: Tensor, *, cu_seqlens: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        self._keys = k
        return super().compress(k, v, cu_seqlens=cu_seqlens)

    def forward(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if self.asked is not None:
            self.loss = self.imitation(q, self._keys, k, self.asked)
        del self._keys
        return super().forward(x, q, k, v, **options)

    def imitation(self, q: Tensor, keys: Tensor, compressed: Tensor, asked: Tensor) -> Tensor:
        tokens, heads, size = q.shape[1:]
        choice = split_choice(self.pattern)
        assert choice is not None
        some = q.gather(1, asked[:, :, None, None].expand(-1, -1, heads, size)).transpose(1, 2) * size**-0.5
        allowed = candidate_blocks(
            choice, static_interval(self.pattern, True), Document(0, tokens, 0, tokens), slice(0, tokens), causal=True,
            device=q.device,
        )[asked][:, None]  # fmt: skip
        with torch.no_grad():
            seen = torch.arange(tokens, device=q.device) <= asked[:, None, :, None]
            exact = (
                (some @ keys.to(some.dtype).permute(0, 2, 3, 1)).float().masked_fill(~seen, float("-inf")).softmax(-1)
            )
            exact = F.pad(exact, (0, -tokens % self.block)).unflatten(-1, (-1, self.block)).sum(-1) * allowed
            total = exact.sum(-1, keepdim=True).clamp(min=1e-9)
        logits = (some @ compressed.to(some.dtype).permute(0, 2, 3, 1)).float()
        log_coarse = logits.masked_fill(~allowed, -1e4).log_softmax(-1)
        return (torch.xlogy(exact, exact / total) - exact * log_coarse).sum(-1).mean()


def faster(model: nn.Module, *, taught: bool = False) -> None:
    """Let the model's selectors run this way, with the same weights; taught ones at the positions that the model is asked at."""
    selectors = [module for module in model.modules() if type(module) is BlockSelector]
    for selector in selectors:
        selector.__class__ = TaughtSelector if taught else CoarseSelector

    def tell(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for selector in selectors:
            selector.asked = args[1] if module.training else None

    if taught:
        model.register_forward_pre_hook(tell)


def lesson(model: nn.Module) -> Tensor:
    """The sum of what the taught selectors of a model missed in its last forward pass; it is told once."""
    taught = [module for module in model.modules() if isinstance(module, TaughtSelector)]
    losses = [selector.loss for selector in taught if selector.loss is not None]
    for selector in taught:
        selector.loss = None
    return torch.stack(losses).sum()
