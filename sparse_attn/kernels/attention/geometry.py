"""What the kernels are told of a pattern and its lengths, cached: the layers of a model ask for the same few."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...patterns import Pattern
from ...patterns.documents import Document, split_documents
from ...patterns.parts import Interval

_FAR = 1 << 30  # stands for an unlimited side; position arithmetic stays inside 32 bits


@dataclass(frozen=True)
class Geometry:
    """One pattern over one set of lengths.

    Attributes:
        interval: Left, right, chunk, chunk_left and chunk_right, as the kernels take them.
        has_chunk: Whether the chunk's three mean anything.
        documents: The documents of a packed call; a plain one is one document.
        packed: Whether the kernels read the documents' boundaries.
    """

    interval: tuple[int, int, int, int, int]
    has_chunk: bool
    documents: tuple[Document, ...]
    packed: bool

    def blocks(self, rows: int, axis: str, device: torch.device) -> tuple[int, Tensor | None, Tensor | None]:
        """How many blocks of so many query rows (axis "q") or keys (axis "k") there are, and the packed tables.

        Returns:
            The number of blocks, the blocks ``[blocks, 3]`` (document, first row, end) and the documents'
            boundaries ``[documents, 4]``, int32 on the device; None for both without packing.
        """
        if not self.packed:
            document = self.documents[0]
            return -(-(document.n_queries if axis == "q" else document.n_keys) // rows), None, None
        return _tables(self.documents, rows, axis, device)


@lru_cache(maxsize=64)
def geometry(
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    causal: bool,
    cu_seqlens_q: tuple[int, ...] | None,
    cu_seqlens_k: tuple[int, ...] | None,
) -> Geometry:
    """The geometry of a pattern that is one interval around each query.

    Raises:
        NotImplementedError: the pattern has parts that the kernels do not read yet.
    """
    # Of one token, the layout tells which parts the terms fall into; it costs microseconds at any length.
    layout = pattern.layout(1, block_q=1, block_k=1, causal=causal)
    interval = layout.interval
    other = [term for term in pattern.terms if Pattern.layout(term, 1, causal=causal).interval is None]
    if interval is None or other or len(interval.chunks) > 1:
        named = repr(other[0]) if other else f"{len(interval.chunks) if interval else 0} chunk sizes at once"
        raise NotImplementedError(
            f"implementation 'triton' has no kernel for {named} yet, only for unions of window, chunked (one size) and "
            "full; use implementation='reference'"
        )
    documents = split_documents(n_queries, n_keys, cu_seqlens_q, cu_seqlens_k)
    return Geometry(_numbers(interval), bool(interval.chunks), documents, cu_seqlens_q is not None)


def _numbers(interval: Interval) -> tuple[int, int, int, int, int]:
    chunk = interval.chunks[0] if interval.chunks else (1, 1, 0)
    sides = (interval.left, interval.right, *chunk)
    left, right, size, chunk_left, chunk_right = (_FAR if side is None else min(side, _FAR) for side in sides)
    return left, right, size, chunk_left, chunk_right


@lru_cache(maxsize=64)
def _tables(
    documents: tuple[Document, ...], rows: int, axis: str, device: torch.device
) -> tuple[int, Tensor | None, Tensor | None]:
    blocks = []
    for index, document in enumerate(documents):
        bounds = (document.q_start, document.q_stop) if axis == "q" else (document.k_start, document.k_stop)
        starts = np.arange(*bounds, rows, dtype=np.int32)
        stops = np.minimum(starts + rows, bounds[1])
        blocks.append(np.stack([np.full_like(starts, index), starts, stops], axis=1))
    table = torch.from_numpy(np.concatenate(blocks).astype(np.int32))
    boundaries = torch.from_numpy(np.array(documents, dtype=np.int32))
    return len(table), table.to(device), boundaries.to(device)
