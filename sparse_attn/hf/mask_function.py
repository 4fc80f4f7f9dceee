"""The mask function that is registered with transformers: it reads what the model asks for, and builds no mask.

transformers describes the mask that a layer needs by lengths, a padding mask and a rule made of nested functions
(causal, sliding window, packed documents, blocks of image tokens ...). Lengths and padding become a `Batch`; the rule
is taken apart, and any part that a pattern cannot honour is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function

from .batch import Batch, packed_documents, padded_documents


def sparse_attn_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | Batch | None = None,
    **_hints: object,
) -> Batch:
    """What the attention function must know about this forward pass; see `Batch`.

    The arguments are those that transformers gives to every mask function: lengths and offsets of queries and keys, the
    rule, and the padding mask over all positions so far ``[B, positions]``. The rest are hints for building tensors.

    Raises:
        NotImplementedError: the rule asks for more than causal attention, a sliding window or packed documents.
        ValueError: the padding mask does not cover the positions so far.
    """
    if isinstance(attention_mask, Batch):  # made early by `generate` for a static cache
        return attention_mask
    window, packed = read_rule(mask_function)
    first_query = int(q_offset)
    positions = first_query + q_length
    documents = None
    if packed is not None:
        documents = packed_documents(packed)
    elif attention_mask is not None:
        if attention_mask.ndim != 2 or attention_mask.shape[0] != batch_size or attention_mask.shape[1] < positions:
            raise ValueError(
                f"attention_mask must be [{batch_size}, {positions}]: one entry for each of the {first_query} cached and "
                f"{q_length} new tokens, got {list(attention_mask.shape)}"
            )
        real = attention_mask[:, :positions].bool()
        if not bool(real.all()):
            documents = padded_documents(real, first_query, kv_offset)
    return Batch(q_length, kv_length, first_query, kv_offset, window, documents)


def read_rule(rule: Callable[..., Any]) -> tuple[int | None, torch.Tensor | None]:
    """The window of a mask rule in keys, and the numbers of its packed documents ``[B, T]``; None where it has none.

    Only rules that transformers itself composes from known parts are read; everything else is refused.
    """
    parts = _parts(rule)
    if "causal" not in parts:
        raise NotImplementedError(
            "the model asks for attention to later tokens (bidirectional): patterns in models are causal"
        )
    return parts.get("window"), parts.get("packed")


def _parts(rule: Callable[..., Any]) -> dict[str, Any]:
    if rule is causal_mask_function:
        return {"causal": True}
    maker = getattr(rule, "__qualname__", repr(rule)).split(".")[0]
    if getattr(rule, "__module__", None) == causal_mask_function.__module__ and inspect.isfunction(rule):
        enclosed = inspect.getclosurevars(rule).nonlocals
        if maker == "and_masks":
            parts: dict[str, Any] = {}
            for inner in enclosed["mask_functions"]:
                parts |= _parts(inner)
            return parts
        if maker == "sliding_window_overlay":
            return {"window": int(enclosed["sliding_window"])}
        if maker == "packed_sequence_mask_function":
            return {"packed": enclosed["packed_sequence_mask"]}
        if maker == "remap_positions_for_packed_sequence":
            return _parts(enclosed["mask_function"])
    raise NotImplementedError(
        f"the model asks for a mask that patterns cannot honour ({maker}): only causal attention, sliding windows and "
        "packed documents are supported (no image tokens that see each other, no chunked or bidirectional layers)"
    )
