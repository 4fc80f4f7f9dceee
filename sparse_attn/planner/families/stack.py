"""What a family's rule hands back, and the widths that most families read the same way."""

from __future__ import annotations

from dataclasses import dataclass

from ..fields import Fields
from ..records import Inert, Layer, Weights

#: Layer types of older configs. Source: transformers, configuration_utils.py (_LEGACY_LAYER_TYPE_REMAP).
LEGACY_TYPES = {"mamba": "linear_attention", "attention": "full_attention"}
_MOST_LAYERS = 4096


@dataclass(frozen=True)
class Stack:
    """A family's answer: its layers, and what stands outside them.

    Attributes:
        layers: From the bottom up.
        width: Widest MLP (or recurrence) that one token passes, in numbers: what a prefill chunk has to hold.
        extra: Parameters outside the layers, beside embedding, head and final norm, which `describe` adds.
        final_norm: Numbers in the norm before the head, per hidden number (2: weight and bias, 0: none).
        inert, notes: Findings of the rule.
        causal: False for encoders.
        tied: Overrides `tie_word_embeddings`; None: as the config says.
    """

    layers: tuple[Layer, ...]
    width: int
    extra: tuple[Weights, ...] = ()
    final_norm: int = 1
    inert: tuple[Inert, ...] = ()
    notes: tuple[str, ...] = ()
    causal: bool = True
    tied: bool | None = None


@dataclass(frozen=True)
class Heads:
    """Heads of queries, heads of keys, and the head dim."""

    queries: int
    keys: int
    dim: int

    @property
    def both(self) -> int:
        """Numbers in one token's query, key and value."""
        return (self.queries + 2 * self.keys) * self.dim


def layer_count(f: Fields) -> int:
    """`num_hidden_layers`, which must be given; at most 4,096, so that a slip of the hand does not fill the memory."""
    count = f.required("num_hidden_layers")
    if count > _MOST_LAYERS:
        raise f.fail(f"num_hidden_layers must be at most {_MOST_LAYERS:,}, got {count:,}")
    return count


def hidden_size(f: Fields) -> int:
    """`hidden_size`, which must be given."""
    return f.required("hidden_size")


def read_heads(f: Fields, *, hybrid: bool = False) -> Heads:
    """`num_attention_heads`, `num_key_value_heads` (default: as many), `head_dim` (default: hidden_size / heads).

    A class default for the number of heads is trusted only where the config is of the default's own width, or where
    the family's head dim does not follow from the width: otherwise it is another model's. In a `hybrid` it is taken all
    the same, and told as doubtful: most of the answer does not hang on it.
    """
    hidden = hidden_size(f)
    own_width = f.defaults.get("hidden_size") == hidden or f.defaults.get("head_dim") is not None
    queries = f.whole("num_attention_heads") if own_width or hybrid else f.required("num_attention_heads")
    keys = f.maybe_whole("num_key_value_heads") or queries
    if queries % keys:
        raise f.fail(f"num_attention_heads {queries} is not a multiple of num_key_value_heads {keys}")
    dim = f.maybe_whole("head_dim")
    if dim is None:
        if hidden % queries:
            raise f.fail(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {queries}, and head_dim is not given"
            )
        dim = hidden // queries
    return Heads(queries, keys, dim)


def read_window(f: Fields, name: str = "sliding_window") -> int | None:
    """A window's W, or None."""
    return f.maybe_whole(name)


def read_layer_types(f: Fields, known: tuple[str, ...], *names: str) -> list[str] | None:
    """`layer_types` as the config gives it, or None: one entry a layer, each one of `known`."""
    names = names or ("layer_types",)
    types = f.listed(*names, length=layer_count(f))
    if types is None:
        return None
    for index, kind in enumerate(types):
        if kind not in known:
            raise f.fail(f"{f.name_of(*names)}[{index}] is {kind!r}, expected one of {', '.join(known)}")
    return types
