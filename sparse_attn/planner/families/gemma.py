"""Gemma 1, 2, 3: local and global layers by a pattern that the oldest configs leave to the class."""

from __future__ import annotations

from ..fields import Fields
from .decoder import Shape, all_full, by_layer_types, decoder, same_mlp
from .stack import Stack, read_window


def gemma(f: Fields) -> Stack:
    """Gemma 1: all full."""
    bias = f.flag("attention_bias")
    return decoder(f, all_full(f), Shape(qkv_bias=bias, out_bias=bias), same_mlp(f, bias=False))


def gemma2(f: Fields) -> Stack:
    """`layer_types`; without it layers 0, 2, 4, ... slide."""
    spans = by_layer_types(f, read_window(f), lambda index: index % 2 == 0, "class default: every second layer full")
    bias = f.flag("attention_bias")
    return decoder(f, spans, Shape(qkv_bias=bias, out_bias=bias, norms=4), same_mlp(f, bias=False))


def gemma3(f: Fields) -> Stack:
    """`layer_types`; without it every `sliding_window_pattern`-th (6th) layer is full."""
    every = f.whole("sliding_window_pattern", default=6)
    window = read_window(f)
    if window and f.flag("use_bidirectional_attention"):
        window = window // 2 + 1
    spans = by_layer_types(f, window, lambda index: (index + 1) % every != 0, "sliding_window_pattern")
    bias = f.flag("attention_bias")
    shape = Shape(qkv_bias=bias, out_bias=bias, qk_norm="head", norms=4)
    return decoder(f, spans, shape, same_mlp(f, bias=False))
