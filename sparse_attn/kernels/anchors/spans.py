"""Where blocks and documents lie: tables that the kernels read where documents are packed."""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Spans(NamedTuple):
    """Blocks of a batch, or of packed documents.

    Attributes:
        block: Tokens of a block.
        n_rows: Blocks of one example; of all documents together if packed.
        sequences: Examples, or documents.
        tokens: Packed: first token and end of each block, ``[rows, 2]``; else None.
        rows: Packed: where each document's rows begin, and their end, ``[documents + 1]``; else None.
    """

    block: int
    n_rows: int
    sequences: int
    tokens: Tensor | None
    rows: Tensor | None

    @property
    def packed(self) -> bool:
        return self.rows is not None


def spans(batch: int, n_keys: int, block: int, cu_seqlens: tuple[int, ...] | None, device: torch.device) -> Spans:
    """The blocks of a call; tables are made once for their lengths."""
    if cu_seqlens is None:
        return Spans(block, -(-n_keys // block), batch, None, None)
    return _packed(block, cu_seqlens, device)


@lru_cache(maxsize=64)
def _packed(block: int, cu_seqlens: tuple[int, ...], device: torch.device) -> Spans:
    tokens: list[tuple[int, int]] = []
    rows = [0]
    for start, stop in pairwise(cu_seqlens):
        tokens.extend((first, min(first + block, stop)) for first in range(start, stop, block))
        rows.append(len(tokens))
    table = torch.tensor(tokens, dtype=torch.int32, device=device).reshape(-1, 2)
    return Spans(block, len(tokens), len(cu_seqlens) - 1, table, torch.tensor(rows, dtype=torch.int32, device=device))
