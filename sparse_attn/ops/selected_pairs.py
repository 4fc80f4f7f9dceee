"""The exact number of pairs that attention through a pattern with chosen blocks computes: what a choice has cost."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from ..cpu.selected_keys import ChosenKeys
from ..patterns import Pattern
from ..patterns.documents import split_documents
from .block_pairs import has_table, pairs_by_table
from .check_attention import check_patterns
from .check_selected import same_choice


def selected_pairs(
    selected: Int[Tensor, "*B N H K"],
    pattern: Pattern | Sequence[Pattern],
    n_queries: int | None = None,
    n_keys: int | None = None,
    *,
    causal: bool = True,
    cu_seqlens_q: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
) -> Int[Tensor, "*B H"]:
    """Pairs of a query and a key that count, for each example and choosing head.

    Those that a static term keeps, and those of chosen blocks that none does; a block named twice counts twice, as in
    `attention`. Extra keys of `Anchors` are no keys of the sequence.

    Args:
        selected: As `attention` takes it (packed: ``[N, H, K]`` with `cu_seqlens_q`); on any device.
        pattern: One, or one per KV head, with a `TopBlocks` term. `pattern.pairs` bounds the result from above.
        n_queries, n_keys, causal, cu_seqlens_q, cu_seqlens_k: As for `pattern.pairs`.

    Raises:
        ValueError: lengths that do not fit, or no `TopBlocks` term.

    Cost: where the static part has windows, chunks and sinks alone and attention is causal, a table of O(T x S / block) for each
    pattern and lengths, then O(N x H x K). Otherwise O(N x rows x H x K x block) on the CPU, a few MiB at a time.

    >>> selected_pairs(torch.tensor([0, -1]).expand(1, 6, 1, 2), Window(1) | TopBlocks(2, 4), 6)  # 6 of windows and 14 others
    tensor([[20]])
    """
    packed = cu_seqlens_q is not None
    own = selected[None] if packed else selected
    patterns = check_patterns(pattern, n_kv_heads=1 if isinstance(pattern, Pattern) else len(pattern))
    choice = same_choice(patterns)
    documents = split_documents(n_queries, n_keys, cu_seqlens_q, cu_seqlens_k)
    n_tiles = sum(choice.term.tiles(document.n_queries, document.n_keys) for document in documents)
    if own.dim() != 4 or own.shape[1] != n_tiles or own.shape[2] % len(patterns):
        raise ValueError(
            f"selected must have shape ([B,] {n_tiles}, H, K) for {choice.term!r}, got {tuple(selected.shape)}"
        )
    counts = torch.zeros(own.shape[0], own.shape[2], dtype=torch.int64)
    bounds = tuple(None if given is None else tuple(map(int, given)) for given in (cu_seqlens_q, cu_seqlens_k))
    per_pattern = own.shape[2] // len(patterns)
    for number, one in enumerate(patterns):
        static = same_choice([one]).static
        if static is not None:
            kept = _static_pairs(static, n_queries, n_keys, causal, *bounds)
            counts[:, number * per_pattern : (number + 1) * per_pattern] = kept
    if len(patterns) == 1 and has_table(choice, causal):
        counts += pairs_by_table(own, patterns[0], documents)
        return counts[0] if packed else counts
    own = own.cpu()
    for b in range(own.shape[0]):
        for head in range(own.shape[2]):
            keys = ChosenKeys(
                own[b : b + 1, :, head : head + 1],
                [patterns[head // per_pattern]],
                documents,
                causal=causal,
                heads=(1, 1),
                head_dim=1,
                packed=packed,
            )
            counts[b, head] += sum(int(gathered.keep.sum()) for gathered in keys)
    return counts[0] if packed else counts


@lru_cache(maxsize=64)  # the layers of a model ask for the same few
def _static_pairs(
    pattern: Pattern,
    n_queries: int | None,
    n_keys: int | None,
    causal: bool,
    cu_seqlens_q: tuple[int, ...] | None,
    cu_seqlens_k: tuple[int, ...] | None,
) -> int:
    return pattern.pairs(n_queries, n_keys, causal=causal, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
