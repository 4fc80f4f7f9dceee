"""What teaches a selector: at a few queries, its coarse weights against where exact attention would look."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..ops.select_blocks import candidate_blocks, static_interval, wide
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

    p is a target: no gradient passes through it. Keys whose blocks are no candidates (those wholly inside the pattern's
    interval) count for nothing, so that a query which looks nearby teaches little; mass on sinks, and on a block that the
    interval covers in part, counts though the pattern keeps those keys anyway.

    Args:
        q, k: Of whole causal sequences, as attention takes them.
        compressed: One key for each block, as the selector scores them.
        at: The queries that teach, numbers from 0 to T - 1. All of them would cost what dense attention costs: a few of each
            sequence will do.
        pattern: With a `TopBlocks` term.
        scale: Logit multiplier; ``D ** -0.5`` if None.

    Raises:
        ValueError: a pattern without `TopBlocks`, another number of keys than queries, compressed keys of another number of
            blocks, or positions that are not ``[B, Q]`` (on a CPU: or lie outside the sequence).
        NotImplementedError: rows > 1, whose candidates are a tile's, later than some of its queries.

    Gradients flow to q and `compressed` (and through it to k and the pooling). Logits and weights are float32, inside
    autocast too, as where blocks are chosen. Cost: B * Q * T * Hq * D multiply-adds; memory: B * Hq * Q * T numbers.
    Source: DeepSeek-AI 2025, arXiv:2512.02556 (indexer); Gao et al. 2024, arXiv:2410.13276.
    """
    choice = split_choice(pattern)
    if choice is None or not isinstance(choice.term, TopBlocks):
        raise ValueError(f"pattern must have a TopBlocks term, which says what is chosen, got {pattern!r}")
    if choice.term.rows > 1:
        raise NotImplementedError(f"selection_loss: {choice.term!r} chooses with later queries of its tile: use rows=1")
    (batch, tokens, heads, size), block = q.shape, choice.term.block
    blocks = -(-tokens // block)
    if k.shape[1] != tokens or compressed.shape[1] != blocks:
        raise ValueError(
            f"k must have q's {tokens} tokens and compressed their {blocks} blocks of {block}, got {k.shape[1]} and "
            f"{compressed.shape[1]}"
        )
    _check_positions(at, batch, tokens)
    at = at.long()
    scale = size**-0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        mass, allowed = candidate_mass(q, k, at, pattern, scale=scale)
        total = mass.sum(-1, keepdim=True).clamp(min=1e-9)
        some = wide(q.gather(1, at[:, :, None, None].expand(-1, -1, heads, size))) * scale
        log_coarse = _logits(some, compressed).masked_fill(~allowed, -1e4).log_softmax(-1)
        return (torch.xlogy(mass, mass / total) - mass * log_coarse).sum(-1).mean()


@torch.no_grad()
def candidate_mass(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B T Hkv D"],
    at: Int[Tensor, "B Q"],
    pattern: Pattern,
    *,
    scale: float,
) -> tuple[Float[Tensor, "B Hq Q blocks"], Bool[Tensor, "B 1 Q blocks"]]:
    """What exact attention of the queries `at` gives to each block that they may choose, and which blocks those are.

    Arguments are those of `selection_loss`, checked; no gradient passes.
    """
    (batch, tokens, heads, size), choice = q.shape, split_choice(pattern)
    assert choice is not None
    block, document = choice.term.block, Document(0, tokens, 0, tokens)
    allowed = candidate_blocks(
        choice, static_interval(pattern, True), document, at.flatten(), causal=True, device=q.device
    ).view(batch, 1, at.shape[1], -1)
    with torch.autocast(q.device.type, enabled=False):
        some = wide(q.gather(1, at[:, :, None, None].expand(-1, -1, heads, size))) * scale
        later = torch.arange(tokens, device=q.device) > at[:, None, :, None]
        mass = _logits(some, k).masked_fill(later, float("-inf")).softmax(-1)
    return torch.nn.functional.pad(mass, (0, -tokens % block)).unflatten(-1, (-1, block)).sum(-1) * allowed, allowed


def _check_positions(at: Tensor, batch: int, tokens: int) -> None:
    whole = at.dtype in (torch.int32, torch.int64)
    if not whole or at.dim() != 2 or at.shape[0] != batch or not at.shape[1]:
        raise ValueError(f"at must hold positions [{batch}, Q], int32 or int64, Q at least 1, got {at.dtype} of shape "
                         f"{tuple(at.shape)}")  # fmt: skip
    if at.device.type == "cpu" and not 0 <= int(at.min()) <= int(at.max()) < tokens:  # on a GPU it would be waited for
        raise ValueError(f"at must hold positions from 0 to {tokens - 1}, got {int(at.min())} to {int(at.max())}")


def _logits(q: Float[Tensor, "B Q Hq D"], keys: Float[Tensor, "B N Hkv D"]) -> Float[Tensor, "B Hq Q N"]:
    """Heads of a group beside each other, so that keys are not repeated."""
    kv_heads = keys.shape[2]
    grouped = q.transpose(1, 2).unflatten(1, (kv_heads, -1)).flatten(2, 3)
    logits = grouped @ wide(keys).permute(0, 2, 3, 1)
    return logits.unflatten(2, (-1, q.shape[1])).flatten(1, 2)
