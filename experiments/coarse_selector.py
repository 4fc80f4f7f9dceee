"""The learned selector in one call of PyTorch's attention: what `nn.BlockSelector` computes, fast enough to train with.

`compressed_attention` orders all of its weights in plain torch, which at 16,384 tokens takes most of a step. Where each
query and head choose for themselves, the order of weights is that of logits: the kernel that selects by them serves, and
the coarse attention itself is a masked product over a few hundred keys.
"""

from collections.abc import Callable, Sequence

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


def faster(model: nn.Module) -> list[BlockSelector]:
    """Let the model's selectors run this way, with the same weights."""
    selectors = [module for module in model.modules() if type(module) is BlockSelector]
    for selector in selectors:
        selector.__class__ = CoarseSelector
    return selectors


def teach(model: nn.Module, selectors: Sequence[BlockSelector]) -> Callable[[], Tensor]:
    """Selectors learn, while the model trains, at the positions that it is asked at; the sum of their last lessons."""

    def tell(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for selector in selectors:
            selector.taught_at = args[1] if module.training else None

    def lesson() -> Tensor:
        return torch.stack([selector.lesson() for selector in selectors]).sum()

    model.register_forward_pre_hook(tell)
    return lesson
