"""The dense mask, element by element from the terms' own rules: the picture, and the judge of everything faster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .documents import check_examples, split_documents
from .pattern import Lengths, Pattern


def dense_mask(
    pattern: Pattern,
    n_queries: int | None,
    n_keys: int | None,
    causal: bool,
    cu_seqlens_q: Lengths | None,
    cu_seqlens_k: Lengths | None,
) -> NDArray[np.bool_]:
    """The mask ``[T, S]``; see `Pattern.mask`."""
    documents = split_documents(n_queries, n_keys, cu_seqlens_q, cu_seqlens_k)
    check_examples(pattern, documents, packed=cu_seqlens_q is not None)
    keep = np.zeros((documents[-1].q_stop, documents[-1].k_stop) if documents else (0, 0), dtype=bool)
    for index, document in enumerate(documents):
        own = pattern if cu_seqlens_q is None else pattern.example(index)
        i = document.first_position + np.arange(document.n_queries)[:, None]
        j = np.arange(document.n_keys)[None, :]
        block = keep[document.q_start : document.q_stop, document.k_start : document.k_stop]
        for term in own.terms:
            block |= term.keeps(i, j, document.n_keys, causal)
        if causal:
            block &= j <= i
    return keep
