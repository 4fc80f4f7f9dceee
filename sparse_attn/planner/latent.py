"""Multi-head latent attention (MLA), and the index that picks keys for it.

MLA keeps one latent of kv_lora_rank numbers and one rotated key of qk_rope_head_dim for each token, whatever the number
of heads; keys and values of qk_nope + qk_rope and v_head_dim are expanded from it. `head_dim` in such a config is the
rotated part, or nothing of use. Source: DeepSeek-AI 2024, arXiv:2405.04434; the index: DeepSeek-V3.2, arXiv:2512.02556.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .blocks import Mixer, small
from .fields import Fields
from .records import Memory, Scores, Weights


@dataclass(frozen=True)
class Latent:
    """MLA's widths."""

    heads: int
    query_rank: int | None
    rank: int
    nope: int
    rope: int
    value: int
    bias: bool


def read_latent(f: Fields) -> Latent:
    """`kv_lora_rank`, `q_lora_rank` (null: one plain projection), `qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim`."""
    return Latent(
        f.whole("num_attention_heads"),
        f.maybe_whole("q_lora_rank"),
        f.whole("kv_lora_rank"),
        f.whole("qk_nope_head_dim"),
        f.whole("qk_rope_head_dim", least=0),
        f.whole("v_head_dim"),
        f.flag("attention_bias"),
    )


def latent_attention(hidden: int, m: Latent) -> Mixer:
    """Kept for each token: rank + rope numbers. Scored: heads x (rank + rope + rank), as served without expansion."""
    key = m.nope + m.rope
    query = hidden * m.heads * key if m.query_rank is None else m.query_rank * (hidden + m.heads * key)
    matrices = query + hidden * (m.rank + m.rope) + m.rank * m.heads * (m.nope + m.value) + m.heads * m.value * hidden
    extra = m.rank + (m.query_rank or 0)
    extra += ((m.query_rank or 0) + m.rank + m.rope + hidden) * m.bias
    return Mixer(
        kind="latent",
        heads=m.heads,
        kv_heads=1,
        head_dim=key,
        value_dim=m.value,
        memory=(Memory("latent", m.rank + m.rope),),
        scores=(Scores("attention", 2 * m.heads * (key + m.value)),),
        weights=(Weights("attention", matrices, matrices), *small("attention", extra)),
    )


def with_index(mixer: Mixer, hidden: int, *, rank: int, heads: int, dim: int, top: int, own: bool = True) -> Mixer:
    """The same with an index of `heads` x `dim` that picks the `top` keys for each query.

    Every key is scored by the index (2 x heads x dim), `top` of them by attention. `own` false: the layer uses an
    earlier layer's choice and has no index itself.
    """
    scores = tuple(replace(score, rule="top", size=top) for score in mixer.scores)
    memory = tuple(replace(one, read=top) for one in mixer.memory)
    weights = mixer.weights
    if own:
        matrices = rank * heads * dim + hidden * dim + hidden * heads
        scores = (Scores("index", 2 * heads * dim), *scores)
        memory = (*memory, Memory("index keys", dim))
        weights = (*weights, Weights("attention", matrices, matrices), *small("attention", 2 * dim))
    return replace(mixer, kind="indexed", window=top, scores=scores, memory=memory, weights=weights)
