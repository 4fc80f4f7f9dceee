"""The attention function that is registered with transformers: a layer's queries and keys, through its pattern."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops import attention
from ..patterns import Chunked, Dilated, Full, Global, Hashed, Pattern, Sinks, Strided, Window
from ..patterns.pattern import Within
from .batch import Batch, Document, pack, unpack
from .prefill_choice import PairCount, attend_by_coverage, covering_choice

# Keywords that change nothing that attention computes.
HARMLESS = frozenset({
    "cache_position", "logits_to_keep", "num_items_in_batch", "output_hidden_states", "output_router_logits",
    "position_ids", "return_dict", "use_cache",
})  # fmt: skip

MEANINGS = {
    "softcap": "soft-capped logits",
    "s_aux": "learned sinks",
    "head_mask": "a head mask",
    "output_attentions": "returning attention weights",
    "cu_seq_lens_q": "packed documents by cu_seq_lens (pass position_ids that restart, and use_cache=False)",
}


@dataclass(frozen=True)
class LayerPattern:
    """What `sparsify` attaches to an attention layer."""

    pattern: Pattern
    implementation: str | None
    spent: PairCount | None = None  # counted where the pattern chooses by coverage


def sparse_attn_forward(
    module: nn.Module,
    query: Float[Tensor, "B Hq T D"],
    key: Float[Tensor, "B Hkv S D"],
    value: Float[Tensor, "B Hkv S Dv"],
    attention_mask: object,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: object,
) -> tuple[Float[Tensor, "B T Hq D"], None]:
    """Attention of one layer through the pattern that `sparsify` attached to it.

    Args:
        module: The attention layer; carries its `LayerPattern`.
        query, key, value: After RoPE and cache, as transformers lays them out.
        attention_mask: The `Batch` that the mask function made.
        scaling: Logit multiplier; ``D ** -0.5`` if None.
        dropout: Must be 0.
        sliding_window: The layer's own window in keys, its own included.
        options: Whatever else the model passes; refused unless known to change nothing.

    Raises:
        NotImplementedError: the model asks for something that is not implemented.
        RuntimeError: the layer carries no pattern.
    """
    layer = _layer_pattern(module)
    _refuse_unknown(module, dropout, key, value, options)
    batch = _batch(module, attention_mask, key)
    batch.check_positions(options.get("position_ids"))
    window = min((w for w in (batch.window, sliding_window) if w is not None), default=None)
    _check_exact(batch, window)
    pattern = layer.pattern if window is None else layer.pattern.within(Window(window))

    query, key, value = _one_dtype(query, key, value)
    q = query.transpose(1, 2)
    k, v = (x[:, :, : batch.filled_keys].transpose(1, 2) for x in (key, value))
    if batch.documents is not None:
        return _by_document(q, k, v, pattern, batch.documents, scaling, layer), None
    restored = dropped_to_restore(pattern, batch.first_key)
    if restored:
        k, v = (nn.functional.pad(x, (0, 0, 0, 0, restored, 0)) for x in (k, v))
    return _attend(q, k, v, pattern, scaling, layer), None


def _by_document(
    q: Float[Tensor, "B T Hq D"],
    k: Float[Tensor, "B S Hkv D"],
    v: Float[Tensor, "B S Hkv D"],
    pattern: Pattern,
    documents: tuple[Document, ...],
    scaling: float | None,
    layer: LayerPattern,
) -> Float[Tensor, "B T Hq D"]:
    """A padded or packed batch: real tokens end to end, attention within each document, padding rows zero."""
    rows = [document.row for document in documents]
    queries, keys = [d.queries for d in documents], [d.keys for d in documents]
    restored = [dropped_to_restore(pattern, d.dropped) for d in documents]
    out = _attend(
        pack(q, rows, queries, [0] * len(rows)),
        pack(k, rows, keys, restored),
        pack(v, rows, keys, restored),
        pattern,
        scaling,
        layer,
        [0, *accumulate(d.n_queries for d in documents)],
        [0, *accumulate(d.n_keys + zeros for d, zeros in zip(documents, restored, strict=True))],
    )
    return unpack(out, rows, queries, (q.shape[0], q.shape[1]))


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    scaling: float | None,
    layer: LayerPattern,
    bounds_q: list[int] | None = None,
    bounds_k: list[int] | None = None,
) -> Tensor:
    choice = covering_choice(pattern)
    if choice is not None and layer.spent is not None:
        return attend_by_coverage(
            q, k, v, pattern, choice, scaling=scaling, bounds=(bounds_q, bounds_k),
            implementation=layer.implementation, spent=layer.spent,
        )  # fmt: skip
    out = attention(
        q, k, v, pattern, scale=scaling, cu_seqlens_q=bounds_q, cu_seqlens_k=bounds_k,
        implementation=layer.implementation,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


def dropped_to_restore(pattern: Pattern, dropped: int) -> int:
    """How many of the keys that a sliding-window cache has dropped must come back, as zeros, for positions to be right.

    No query sees a dropped key: the model's window cuts it. But sinks and global tokens are named by position, and
    strides and chunks are counted from the start. A pattern is the same after a shift by a multiple of its strides and
    chunk sizes that stays clear of the positions it names; the fewest keys that leave such a shift are returned. Random
    blocks are drawn by absolute position: all keys come back.

    Raises:
        NotImplementedError: keys were dropped that hashing would count.

    >>> dropped_to_restore(Window(64), 1000), dropped_to_restore(Window(64) | Sinks(4), 1000)
    (0, 4)
    >>> dropped_to_restore(Strided(32), 1000), dropped_to_restore(Chunked(64) | Strided(3), 1000)
    (8, 40)
    """
    period, named = 1, 0
    for cut in pattern.terms:
        term = cut.term if isinstance(cut, Within) else cut
        match term:
            case Window() | Full() | Dilated():
                pass
            case Strided():
                period = math.lcm(period, term.stride)
            case Chunked():
                period = math.lcm(period, term.size)
            case Sinks():
                named = max(named, term.n)
            case Global():
                lists = [term] if term.examples is None else [term.example(n) for n in range(term.examples)]
                named = max([named, *(position + 1 for one in lists for position in one.shared)])
            case Hashed() if dropped:
                raise NotImplementedError(
                    f"the cache has dropped {dropped} keys, among which {term!r} ranks those that are left: use DynamicCache() "
                    "without a config, which keeps all keys"
                )
            case _:
                return dropped
    return dropped if dropped < named else named + (dropped - named) % period


def _layer_pattern(module: nn.Module) -> LayerPattern:
    layer = getattr(module, "sparse_attn", None)
    if not isinstance(layer, LayerPattern):
        raise RuntimeError(
            f"{type(module).__name__} has no pattern: its config names the attention implementation 'sparse_attn', but "
            "sparse_attn.hf.sparsify was not called on this model"
        )
    return layer


def _refuse_unknown(module: nn.Module, dropout: float, key: Tensor, value: Tensor, options: dict[str, object]) -> None:
    name = type(module).__name__
    if dropout:
        raise NotImplementedError(f"{name} asks for dropout {dropout} of attention: set it to 0 for training")
    if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise NotImplementedError(f"{name} asks for bidirectional attention: patterns in models are causal")
    if key.shape != value.shape:
        raise NotImplementedError(
            f"{name} has keys of {key.shape[-1]} and values of {value.shape[-1]} numbers (latent attention): they must "
            "have the same head dim"
        )
    for option, given in options.items():
        if option in HARMLESS or option == "is_causal" or given is None or given is False:
            continue
        meaning = MEANINGS.get(option, "which is unknown here")
        raise NotImplementedError(f"{name} passes {option}: {meaning}; attention through a pattern does not support it")


def _batch(module: nn.Module, given: object, key: Tensor) -> Batch:
    if not isinstance(given, Batch):
        what = "none" if given is None else f"a {type(given).__name__} of shape {list(getattr(given, 'shape', ()))}"
        raise NotImplementedError(
            f"{type(module).__name__} got {what} as its attention mask, where only a padding mask [B, positions] given to "
            "the model is supported: a mask made by the caller ([B, 1, T, S]) cannot be joined with a pattern"
        )
    if key.shape[2] != given.n_keys:
        raise NotImplementedError(
            f"{type(module).__name__} got {key.shape[2]} keys, but its cache announced {given.n_keys}: this kind of cache "
            "is not supported, use DynamicCache or StaticCache"
        )
    return given


def _check_exact(batch: Batch, window: int | None) -> None:
    """Refuse what would count positions wrongly."""
    if window is not None and any(document.holes for document in batch.documents or ()):
        raise NotImplementedError(
            "attention_mask has padding between real tokens of a row, and the layer has a sliding window, which would "
            "count the padding: pad on the left, or on the right without continuing"
        )
    if batch.first_key and (window is None or batch.first_query - batch.first_key < window - 1):
        raise NotImplementedError(
            f"the cache has dropped {batch.first_key} keys, of which a window of {window} may still need some: use "
            "DynamicCache() without a config, which keeps all keys"
        )


def _one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast RoPE leaves float32 queries and keys beside values of lower precision: all take autocast's."""
    if not torch.is_autocast_enabled(query.device.type):
        return query, key, value
    dtype = torch.get_autocast_dtype(query.device.type)
    return query.to(dtype), key.to(dtype), value.to(dtype)
