"""What teaches a selector: at a few queries, its coarse weights against where exact attention would look."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..ops.select_blocks import candidate_blocks, static_interval
from ..patterns import Pattern, TopBlocks
from ..patterns.chosen import split_choice
from ..patterns.documents import Document


def selection_loss(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B T Hkv D"],
    compressed: Float[Tensor, "B blocks Hkv D"],
    at: Int[Tensor, "B Q"],
    pattern: Pattern,
    *,
    scale: float | None = None,
) -> Float[Tensor, ""]:
    """How far a selector's weights are from the mass that exact attention would give to the blocks it may choose.

    p[b] = what block b's keys get of softmax(scale * q[t] k[:t+1]);  c = softmax over candidates of scale * q[t] compressed
    loss = mean over t in `at` and heads of  sum_b p[b] (log(p[b] / sum(p)) - log c[b]),  b over the candidates

    p is a target: no gradient passes through it. Mass on keys that the static part of the pattern keeps anyway counts for
    nothing, so that a query which looks nearby teaches little.

    Args:
        q, k: Of whole causal sequences, as attention takes them.
        compressed: One key for each block, as the selector scores them.
        at: The queries that teach. All of them would cost what dense attention costs: a few of each sequence will do.
        pattern: With a `TopBlocks` term.
        scale: Logit multiplier; ``D ** -0.5`` if None.

    Raises:
        ValueError: a pattern without `TopBlocks`, more queries than keys, or compressed keys of another number of blocks.

    Gradients flow to q and `compressed` (and through it to k and the pooling). Cost: 2 * Q * T * Hq * D multiply-adds.
    Source: DeepSeek-AI 2025, arXiv:2512.02556 (indexer); Gao et al. 2024, arXiv:2410.13276.
    """
    choice = split_choice(pattern)
    if choice is None or not isinstance(choice.term, TopBlocks):
        raise ValueError(f"pattern must have a TopBlocks term, which says what is chosen, got {pattern!r}")
    (tokens, heads, size), block = q.shape[1:], choice.term.block
    blocks = -(-tokens // block)
    if k.shape[1] != tokens or compressed.shape[1] != blocks:
        raise ValueError(
            f"k must have q's {tokens} tokens and compressed their {blocks} blocks of {block}, got {k.shape[1]} and "
            f"{compressed.shape[1]}"
        )
    scale = size**-0.5 if scale is None else scale
    group, document = heads // k.shape[2], Document(0, tokens, 0, tokens)
    some = q.gather(1, at[:, :, None, None].expand(-1, -1, heads, size)).transpose(1, 2) * scale
    allowed = candidate_blocks(
        choice, static_interval(pattern, True), document, slice(0, tokens), causal=True, device=q.device
    )[at][:, None]
    with torch.no_grad():
        later = torch.arange(tokens, device=q.device) > at[:, None, :, None]
        mass = _logits(some, k, group).masked_fill(later, float("-inf")).softmax(-1)
        mass = torch.nn.functional.pad(mass, (0, -tokens % block)).unflatten(-1, (-1, block)).sum(-1) * allowed
        total = mass.sum(-1, keepdim=True).clamp(min=1e-9)
    log_coarse = _logits(some, compressed, group).masked_fill(~allowed, -1e4).log_softmax(-1)
    return (torch.xlogy(mass, mass / total) - mass * log_coarse).sum(-1).mean()


def _logits(q: Float[Tensor, "B Hq Q D"], keys: Float[Tensor, "B N Hkv D"], group: int) -> Float[Tensor, "B Hq Q N"]:
    by_head = keys.to(q.dtype).permute(0, 2, 3, 1).repeat_interleave(group, 1)
    logits = q @ by_head
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
