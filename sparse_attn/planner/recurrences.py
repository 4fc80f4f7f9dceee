"""Mixers with a state of fixed size: Mamba, Mamba-2, delta nets, lightning attention, RG-LRU, RWKV, short convolutions.

State: what the next token needs, whatever the length: a matrix per head (or a vector per channel), and the last K - 1
inputs of each convolution of width K. FLOPs per token: 6 for each number of the state (decay, update, read) and 8 with
the delta rule, which reads it twice; 2 x K for each convolved channel.
"""

from __future__ import annotations

from .blocks import Mixer, small
from .records import Memory, Scores, Weights


def _mixer(
    name: str,
    *,
    matrices: int,
    extra: int,
    state: int,
    heads: int,
    convolved: int = 0,
    kernel: int = 0,
    flops: int = 6,
    precision: str = "state",
    padded: bool = True,
) -> Mixer:
    """`padded`: transformers keeps K inputs of a convolution (`Memory.kernel`), as it does for all but RG-LRU."""
    memory = []
    if convolved and kernel > 1:
        memory.append(
            Memory(
                "convolution state",
                convolved * (kernel - 1),
                False,
                precision="model",
                heads=heads,
                kernel=kernel * padded,
            )
        )
    if state:
        memory.append(Memory("recurrent state", state, False, precision=precision, heads=heads))  # type: ignore[arg-type]
    return Mixer(
        kind="linear",
        recurrence=name,
        memory=tuple(memory),
        scores=(Scores(name, flops * state + 2 * kernel * convolved, "token"),),
        weights=(
            Weights("recurrence", matrices, matrices),
            *small("recurrence", extra + convolved * kernel),
        ),
    )


def mamba(
    hidden: int, inner: int, state: int, kernel: int, rank: int, *, bias: bool, conv_bias: bool, normed: bool = False
) -> Mixer:
    """Mamba (Gu and Dao 2023, arXiv:2312.00752): a state of `inner` x `state` numbers.

    `rank`: width of the step size's projection; `normed`: norms of step, B and C (Jamba).
    """
    matrices = 2 * hidden * inner + inner * (rank + 2 * state) + rank * inner + inner * hidden
    extra = (
        inner + inner * state + inner + (2 * inner + hidden) * bias + inner * conv_bias + (rank + 2 * state) * normed
    )
    return _mixer(
        "mamba", matrices=matrices, extra=extra, state=inner * state, heads=inner, convolved=inner, kernel=kernel
    )


def mamba2(
    hidden: int,
    heads: int,
    head_dim: int,
    state: int,
    groups: int,
    kernel: int,
    *,
    bias: bool,
    conv_bias: bool,
    out_bias: bool | None = None,
    normed: bool = True,
) -> Mixer:
    """Mamba-2 (Dao and Gu 2024, arXiv:2405.21060): a state of heads x head_dim x `state` numbers."""
    inner = heads * head_dim
    convolved = inner + 2 * groups * state
    out_bias = bias if out_bias is None else out_bias
    matrices = hidden * (inner + convolved + heads) + inner * hidden
    extra = (inner + convolved + heads) * bias + convolved * conv_bias + hidden * out_bias + 3 * heads + inner * normed
    return _mixer(
        "mamba2", matrices=matrices, extra=extra, state=inner * state, heads=heads, convolved=convolved, kernel=kernel
    )


def gated_delta_net(hidden: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int, kernel: int) -> Mixer:
    """Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464): a state of value_heads x key_dim x value_dim numbers."""
    keys, values = key_heads * key_dim, value_heads * value_dim
    convolved = 2 * keys + values
    matrices = hidden * (convolved + values + 2 * value_heads) + values * hidden
    return _mixer(
        "gated delta net",
        matrices=matrices,
        extra=2 * value_heads + value_dim,
        state=value_heads * key_dim * value_dim,
        heads=value_heads,
        convolved=convolved,
        kernel=kernel,
        flops=8,
    )


def kimi_delta_attention(hidden: int, heads: int, dim: int, kernel: int) -> Mixer:
    """Kimi Delta Attention (Kimi Team 2025, arXiv:2510.26692): heads x dim x dim numbers, a decay per channel."""
    width = heads * dim
    matrices = 3 * hidden * width + 2 * (hidden * dim + dim * width) + hidden * heads + width * hidden
    return _mixer(
        "kimi delta attention",
        matrices=matrices,
        extra=width + heads + dim,
        state=heads * dim * dim,
        heads=heads,
        convolved=3 * width,
        kernel=kernel,
        flops=8,
    )


def lightning_attention(hidden: int, heads: int, dim: int) -> Mixer:
    """Lightning attention (Qin et al. 2024, arXiv:2401.04658; MiniMax-01, arXiv:2501.08313): heads x dim x dim numbers."""
    width = heads * dim
    return _mixer(
        "lightning",
        matrices=5 * hidden * width,
        extra=width,
        state=heads * dim * dim,
        heads=heads,
        precision="model",
    )


def rg_lru(hidden: int, width: int, heads: int, kernel: int) -> Mixer:
    """RG-LRU (De et al. 2024, arXiv:2402.19427): `width` numbers, gates that are block-diagonal over `heads`."""
    block = width // heads
    matrices = 3 * hidden * width + 2 * heads * block * block
    extra = 4 * width + hidden + 2 * heads * block
    return _mixer(
        "rg-lru",
        matrices=matrices,
        extra=extra,
        state=width,
        heads=heads,
        convolved=width,
        kernel=kernel,
        precision="float32",
        padded=False,
    )


def rwkv4(hidden: int, width: int) -> Mixer:
    """RWKV-4's time mixing (Peng et al. 2023, arXiv:2305.13048).

    State: numerator, denominator and maximum of `width` numbers each in float32, and the last inputs of the time mix
    and of the channel mix, `hidden` numbers each.
    """
    matrices = 3 * hidden * width + width * hidden
    return Mixer(
        kind="linear",
        recurrence="rwkv",
        memory=(
            Memory("last inputs", 2 * hidden, False, precision="model"),
            Memory("recurrent state", 3 * width, False, precision="float32", heads=width),
        ),
        scores=(Scores("rwkv", 12 * width, "token"),),
        weights=(Weights("recurrence", matrices, matrices), *small("recurrence", 2 * width + 3 * hidden)),
    )


def short_convolution(hidden: int, kernel: int, *, bias: bool) -> Mixer:
    """LFM2's gated short convolution: the last K - 1 inputs and nothing else."""
    return _mixer(
        "short convolution",
        matrices=4 * hidden * hidden,
        extra=5 * hidden * bias,
        state=0,
        heads=1,
        convolved=hidden,
        kernel=kernel,
    )
