"""Longformer and BigBird: encoders with sparse attention. They keep no cache between calls."""

from __future__ import annotations

from ..blocks import Mixer, build_layer, plain_mlp, small, whole
from ..fields import Fields
from ..records import Layer, Scores, Weights
from .stack import Stack, hidden_size, layer_count


def longformer(f: Fields) -> Stack:
    """`attention_window` w, one number or one a layer: w / 2 keys on each side of a token, and global tokens.

    Global tokens are chosen by the caller; they have projections of their own.
    """
    hidden, count = hidden_size(f), layer_count(f)
    given = f.value("attention_window", default=512)
    windows = f.listed("attention_window", length=count) if isinstance(given, list) else [given] * count
    layers = []
    for index, window in enumerate(windows or []):
        if isinstance(window, bool) or not isinstance(window, int) or window < 2 or window % 2:
            raise f.fail(f"attention_window must be even and positive, got {window!r}")
        mixer = _bidirectional(f, hidden, "sliding", window + 1, projections=7)
        note = "tokens that the caller marks as global see, and are seen by, every token"
        layers.append(
            build_layer(index, mixer, _mlp(f), norms=4 * hidden, source="attention_window", rope="learned", note=note)
        )
    return _encoder(f, tuple(layers))


def big_bird(f: Fields) -> Stack:
    """`attention_type`: block_sparse (3 blocks around, the first and last, `num_random_blocks`), or original_full."""
    hidden, count = hidden_size(f), layer_count(f)
    kind = f.value("attention_type", default="block_sparse")
    if kind not in ("block_sparse", "original_full"):
        raise f.fail(f"attention_type must be block_sparse or original_full, got {kind!r}")
    block, drawn = f.whole("block_size"), f.whole("num_random_blocks", least=0)
    bias = f.flag("use_bias", default=True)
    if kind == "block_sparse":
        mixer = _bidirectional(f, hidden, "sliding", 3 * block, projections=4, seen=(5 + drawn) * block, bias=bias)
        note = f"and the first and the last {block} tokens and {drawn} random blocks of {block}; short inputs fall back to full"
    else:
        mixer, note = _bidirectional(f, hidden, "full", None, projections=4, bias=bias), ""
    layers = tuple(
        build_layer(index, mixer, _mlp(f), norms=4 * hidden, source="attention_type", rope="learned", note=note)
        for index in range(count)
    )
    return _encoder(f, layers)


def _bidirectional(
    f: Fields,
    hidden: int,
    kind: str,
    window: int | None,
    *,
    projections: int,
    seen: int | None = None,
    bias: bool = True,
) -> Mixer:
    heads = f.whole("num_attention_heads")
    if hidden % heads:
        raise f.fail(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    score = Scores("attention", 4 * hidden, "window" if window else "full", seen or window or 0)
    matrices = projections * hidden * hidden
    return Mixer(
        kind=kind,  # type: ignore[arg-type]
        window=window,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        value_dim=hidden // heads,
        scores=(score,),
        weights=(whole("attention", matrices), *small("attention", (projections - 1) * hidden * bias + hidden)),
    )


def _mlp(f: Fields) -> tuple[Weights, ...]:
    return plain_mlp(hidden_size(f), f.whole("intermediate_size"), bias=True)


def _encoder(f: Fields, layers: tuple[Layer, ...]) -> Stack:
    """Positions, token types and their norm below; above a pooler, and the head that `architectures` names.

    Longformer's masked model leaves the pooler out, BigBird's keeps it.
    """
    hidden, vocabulary = hidden_size(f), f.whole("vocab_size")
    table = (f.whole("max_position_embeddings") + f.whole("type_vocab_size", least=0)) * hidden
    extra: tuple[Weights, ...] = (
        Weights("embedding", table, table, linear=False, computes=False),
        *small("norms", 2 * hidden),
    )
    names = " ".join(str(one) for one in f.listed("architectures") or [])
    masked = any(name in names for name in ("MaskedLM", "CausalLM", "PreTraining"))
    if masked:
        extra += (whole("head", hidden * hidden, linear=False), *small("head", hidden + 2 * hidden + vocabulary))
    if not masked or f.family == "big_bird":
        extra += (whole("head", hidden * hidden, linear=False), *small("head", hidden))
    if "PreTraining" in names:
        extra += (whole("head", 2 * hidden, linear=False), *small("head", 2))
    return Stack(layers, f.whole("intermediate_size"), extra=extra, final_norm=0, causal=False, tied=True)
