"""What `attention` was called with, checked once and brought into one form for all implementations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..patterns import Pattern, parse
from ..patterns.chosen import Choice, split_choice
from ..patterns.documents import split_documents
from ..patterns.hashed import split_hashed
from ..patterns.refusals import check_union
from ..patterns.terms import Summaries
from .boundaries import read_boundaries
from .check_selected import check_hashed, check_selected, same_choice

Facts = tuple[int, ...]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Call:
    """A checked call, always batched: packed tensors carry B = 1 and their document boundaries.

    Attributes:
        q, k, v: ``[B, T, Hq, D]``, ``[B, S, Hkv, D]``.
        patterns: One pattern for all KV heads, or one for each.
        cu_seqlens_q, cu_seqlens_k: Both given if packed, both None otherwise. Tensors where only the device knows them.
        extra_k, extra_v: ``[B, rows, R, Hkv, D]``, given exactly if the patterns have anchors.
        choice: The `TopBlocks` term that all patterns have, with its cut; None: they have none.
        selected: Chosen blocks ``[B, N, H, K]``; None where `attention` is to choose, or without such a term.
        hashes: Whether all patterns have a `Hashed` term, the same one.
        examples: How many examples (documents, if packed) the patterns tell apart; None: the same for all.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    patterns: tuple[Pattern, ...]
    causal: bool
    scale: float
    cu_seqlens_q: tuple[int, ...] | Tensor | None
    cu_seqlens_k: tuple[int, ...] | Tensor | None
    extra_k: Tensor | None
    extra_v: Tensor | None
    choice: Choice | None
    selected: Tensor | None
    hashes: bool
    examples: int | None

    @property
    def packed(self) -> bool:
        return self.cu_seqlens_q is not None

    @property
    def bounds(self) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """The boundaries of queries and keys as numbers; those of a device by `read_boundaries`."""
        q, k = (None if b is None else read_boundaries(b) for b in (self.cu_seqlens_q, self.cu_seqlens_k))
        return q, k

    def example(self, index: int) -> "Call":
        """One batch example, with the patterns that it has."""
        one = slice(index, index + 1)
        return replace(
            self,
            q=self.q[one],
            k=self.k[one],
            v=self.v[one],
            patterns=tuple(pattern.example(index) for pattern in self.patterns),
            extra_k=None if self.extra_k is None else self.extra_k[one],
            extra_v=None if self.extra_v is None else self.extra_v[one],
            selected=None if self.selected is None else self.selected[one],
            examples=None,
        )

    def static(self) -> "Call | None":
        """The same call through what the patterns keep without choosing; None if that is nothing."""
        if self.choice is None and not self.hashes:
            return self
        parts = [split_choice(pattern) or split_hashed(pattern) for pattern in self.patterns]
        static = tuple(part.static for part in parts if part is not None and part.static is not None)
        if len(static) < len(parts):
            return None
        return replace(self, patterns=static, choice=None, selected=None, hashes=False)


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | Sequence[Pattern],
    causal: bool,
    scale: float | None,
    cu_seqlens_q: Sequence[int] | Tensor | None,
    cu_seqlens_k: Sequence[int] | Tensor | None,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    selected: Tensor | None = None,
) -> Call:
    """The call in one form.

    Raises:
        ValueError: as `attention` documents; names the argument, what came and what was expected.
    """
    packed = cu_seqlens_q is not None
    _check_tensors(q, k, v, packed)
    patterns = check_patterns(pattern, n_kv_heads=k.shape[-2])
    facts = [_facts(own.text) for own in patterns]
    q_bounds = _as_list("cu_seqlens_q", cu_seqlens_q)
    k_bounds = _as_list("cu_seqlens_k", cu_seqlens_k)
    if k_bounds is None and packed and k.shape[-3] != q.shape[-3]:
        raise ValueError(f"cu_seqlens_k is missing: k has {k.shape[-3]} tokens, q has {q.shape[-3]}")
    if not packed and k_bounds is not None:
        raise ValueError("cu_seqlens_k was given without cu_seqlens_q: packed keys need packed queries")
    if not packed and q.shape[-3] > k.shape[-3]:
        raise ValueError(f"q has T={q.shape[-3]} queries, more than k's S={k.shape[-3]} keys: T must be at most S")
    lengths: list[int] | None = None if packed else [k.shape[-3]]
    n_queries = [q.shape[-3]]
    if isinstance(q_bounds, list) and not isinstance(k_bounds, Tensor):
        documents = split_documents(q.shape[-3], k.shape[-3], q_bounds, k_bounds)
        lengths, n_queries = [doc.n_keys for doc in documents], [doc.n_queries for doc in documents]
    examples = None
    if lengths is not None:
        examples = _check_examples(facts, len(lengths) if packed else q.shape[0], packed)
    anchors = _check_anchors(facts)
    _check_extra("extra_k", extra_k, k, anchors, lengths)
    _check_extra("extra_v", extra_v, k, anchors, lengths)
    choice = same_choice(patterns) if any(own[3] for own in facts) else None
    hashes = any(own[4] for own in facts)
    if hashes:
        check_hashed(patterns, causal)
    selected = check_selected(
        selected, choice, q, k, None if lengths is None else list(zip(n_queries, lengths, strict=True))
    )
    if not isinstance(causal, bool):
        raise ValueError(f"causal must be True or False, got {causal!r}")
    if scale is None:
        scale = q.shape[-1] ** -0.5
    elif isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number or None, got {scale!r}")
    if packed:
        q, k, v = q[None], k[None], v[None]
        extra_k, extra_v, selected = (None if x is None else x[None] for x in (extra_k, extra_v, selected))
    return Call(
        q=q,
        k=k,
        v=v,
        patterns=patterns,
        causal=causal,
        scale=float(scale),
        cu_seqlens_q=_fixed(q_bounds),
        cu_seqlens_k=_fixed(q_bounds if k_bounds is None else k_bounds),
        extra_k=extra_k,
        extra_v=extra_v,
        choice=choice,
        selected=selected,
        hashes=hashes,
        examples=examples,
    )


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, packed: bool) -> None:
    dims, form = (3, "[T, H, D] with cu_seqlens_q") if packed else (4, "[B, T, H, D]")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dim() != dims:
            raise ValueError(f"{name} must have shape {form}, got {tuple(tensor.shape)}")
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name} must have q's dtype {q.dtype}, got {tensor.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {tensor.device}")
    if v.shape != k.shape:
        raise ValueError(f"v must have k's shape {tuple(k.shape)}, got {tuple(v.shape)}")
    if not packed and k.shape[0] != q.shape[0]:
        raise ValueError(f"k has batch size {k.shape[0]}, but q has {q.shape[0]}")
    if k.shape[-1] != q.shape[-1] or q.shape[-1] == 0:
        raise ValueError(f"k has head dim {k.shape[-1]}, but q has {q.shape[-1]}; they must be equal and positive")
    if k.shape[-2] == 0 or q.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"k has {k.shape[-2]} heads, but q's {q.shape[-2]} heads cannot be shared among them: Hq must be a "
            "positive multiple of Hkv"
        )


def check_patterns(pattern: Pattern | Sequence[Pattern], n_kv_heads: int) -> tuple[Pattern, ...]:
    """One pattern for all KV heads, or one for each where they differ."""
    if isinstance(pattern, Pattern):
        patterns: tuple[Pattern, ...] = (pattern,)
    elif isinstance(pattern, Sequence) and not isinstance(pattern, str):
        patterns = tuple(pattern)
        if len(patterns) != n_kv_heads:
            raise ValueError(f"pattern: a sequence needs one pattern per KV head, {n_kv_heads}, got {len(patterns)}")
    else:
        raise ValueError(
            f"pattern must be a Pattern such as Window(2048) | Sinks(4), or one per KV head, got {pattern!r}; "
            "text goes through sparse_attn.parse"
        )
    for own in patterns:
        if not isinstance(own, Pattern):
            raise ValueError(f"pattern: every KV head's must be a Pattern, got {own!r}")
    return patterns if len({own.text for own in patterns}) > 1 else patterns[:1]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _facts(text: str) -> Facts:
    """How many examples a pattern tells apart; the number of its summary keys and their block; if it chooses blocks; if it hashes.

    -1: it has no such thing.
    """
    return _known_facts(text)


@lru_cache(maxsize=256)
def _known_facts(text: str) -> Facts:
    pattern = parse(text)
    check_union(pattern)
    anchors = [term for term in pattern.terms if isinstance(term, Summaries)]
    r, block = (anchors[0].extra_keys, anchors[0].block) if anchors else (-1, -1)
    return (
        -1 if pattern.examples is None else pattern.examples,
        r,
        block,
        *(int(split(pattern) is not None) for split in (split_choice, split_hashed)),
    )


def _check_examples(facts: list[Facts], expected: int, packed: bool) -> int | None:
    counts = [count for count, *_ in facts if count >= 0]
    if not counts:
        return None
    for count in counts:
        if count != expected:
            what = "documents" if packed else "batch examples"
            raise ValueError(f"pattern lists Global positions for {count} examples, but there are {expected} {what}")
    return expected


def _check_anchors(facts: list[Facts]) -> tuple[int, int] | None:
    """The number and block of summary keys that all heads' anchors have, or None."""
    for own in facts:
        if own[1:3] != facts[0][1:3]:
            raise ValueError("pattern: all KV heads must have the same term of summary keys, and at most one")
    r, block = facts[0][1:3]
    return None if r < 0 else (r, block)


def _as_list(name: str, lengths: Sequence[int] | Tensor | None) -> list[int] | Tensor | None:
    """The boundaries as a list; a CUDA tensor stays one, so that nothing waits for the device."""
    if lengths is None:
        return None
    if isinstance(lengths, Tensor):
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dim() != 1:
            raise ValueError(f"{name} must be a one-dimensional integer tensor or list, got {lengths.dtype}, "
                             f"shape {tuple(lengths.shape)}")  # fmt: skip
        return lengths if lengths.is_cuda or torch.compiler.is_compiling() else list(map(int, lengths.tolist()))
    if not isinstance(lengths, Sequence) or isinstance(lengths, str):
        raise ValueError(f"{name} must be a one-dimensional integer tensor or list, got {lengths!r}")
    return list(lengths)


def _fixed(bounds: list[int] | Tensor | None) -> tuple[int, ...] | Tensor | None:
    return tuple(bounds) if isinstance(bounds, list) else bounds


def _check_extra(
    name: str, extra: Tensor | None, k: Tensor, anchors: tuple[int, int] | None, lengths: list[int] | None
) -> None:
    if anchors is None:
        if extra is not None:
            raise ValueError(
                f"{name} was given, but the pattern has no Anchors or AnchorTree term that says who sees it"
            )
        return
    r, block = anchors
    if extra is None:
        raise ValueError(
            f"{name} is missing: a pattern with anchors needs its {r} summary keys and values a block of {block}"
        )
    if lengths is None:  # known on the device only
        rows = extra.shape[-4] if isinstance(extra, Tensor) and extra.dim() > 3 else 0
    else:
        rows = sum([-(-n_keys // block) for n_keys in lengths])
    shape = (*k.shape[:-3], rows, r, *k.shape[-2:])
    if not isinstance(extra, Tensor) or tuple(extra.shape) != shape:
        got = tuple(extra.shape) if isinstance(extra, Tensor) else type(extra).__name__
        raise ValueError(f"{name} must have shape {shape} ([B,] ceil(S / block), R, Hkv, D), got {got}")
    if extra.dtype != k.dtype or extra.device != k.device:
        raise ValueError(
            f"{name} must have q's dtype {k.dtype} and device {k.device}, got {extra.dtype} on {extra.device}"
        )
