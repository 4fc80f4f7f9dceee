"""Where blocks, chunks of blocks and documents lie: tables that the kernels read where documents are packed."""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 16  # blocks that the way back takes by themselves


class Spans(NamedTuple):
    """Blocks of a batch, or of packed documents.

    Attributes:
        block: Tokens of a block.
        n_rows: Blocks of one example; of all documents together if packed.
        sequences: Examples, or documents.
        chunk, n_chunks: Blocks of a chunk, which never spans two sequences, and how many there are in all.
        tokens: Packed: first token and end of each block, ``[rows, 2]``; else None.
        rows: Packed: where each document's rows begin, and their end, ``[documents + 1]``; else None.
        chunks: Packed: document, first row and end of each chunk, ``[chunks, 3]``; else None.
        sequence_chunks: Packed: where each document's chunks begin, and their end, ``[documents + 1]``; else None.
    """

    block: int
    n_rows: int
    sequences: int
    chunk: int
    n_chunks: int
    tokens: Tensor | None
    rows: Tensor | None
    chunks: Tensor | None
    sequence_chunks: Tensor | None

    @property
    def packed(self) -> bool:
        return self.rows is not None

    @property
    def chunks_a_sequence(self) -> int:
        """Not packed: chunks of each example."""
        return -(-self.n_rows // self.chunk)


def spans(batch: int, n_keys: int, block: int, cu_seqlens: tuple[int, ...] | None, device: torch.device) -> Spans:
    """The blocks of a call; tables are made once for their lengths."""
    if cu_seqlens is not None:
        return _packed(block, cu_seqlens, device)
    n_rows = -(-n_keys // block)
    return Spans(block, n_rows, batch, CHUNK, batch * -(-n_rows // CHUNK), None, None, None, None)


@lru_cache(maxsize=64)
def _packed(block: int, cu_seqlens: tuple[int, ...], device: torch.device) -> Spans:
    tokens: list[tuple[int, int]] = []
    chunks: list[tuple[int, int, int]] = []
    rows, sequence_chunks = [0], [0]
    for document, (start, stop) in enumerate(pairwise(cu_seqlens)):
        tokens.extend((first, min(first + block, stop)) for first in range(start, stop, block))
        begin, end = rows[-1], len(tokens)
        chunks.extend((document, first, min(first + CHUNK, end)) for first in range(begin, end, CHUNK))
        rows.append(end)
        sequence_chunks.append(len(chunks))
    tables = [
        torch.tensor(table, dtype=torch.int32, device=device) for table in (tokens, rows, chunks, sequence_chunks)
    ]
    return Spans(
        block, len(tokens), len(cu_seqlens) - 1, CHUNK, len(chunks), tables[0].reshape(-1, 2), tables[1],
        tables[2].reshape(-1, 3), tables[3],
    )  # fmt: skip
