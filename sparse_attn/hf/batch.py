"""One batch as transformers hands it over: where queries and keys stand, which of them are padding, whose window holds.

The mask function makes a `Batch` once for each forward pass and kind of layer; transformers carries it to every
attention layer in the place of a mask. A padded batch, or one with packed documents, becomes a list of documents whose
real tokens are laid end to end, so that positions count within a row's own tokens whatever side the padding is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Spans = tuple[tuple[int, int], ...]


class Document(NamedTuple):
    """One document: its row, and the stretches of real tokens that it has on the query and the key axis."""

    row: int
    queries: Spans
    keys: Spans
    dropped: int  # keys before the first arriving one, which a sliding-window cache no longer holds
    holes: bool  # padding stands between real tokens

    @property
    def n_queries(self) -> int:
        return sum(stop - start for start, stop in self.queries)

    @property
    def n_keys(self) -> int:
        return sum(stop - start for start, stop in self.keys)


@dataclass(eq=False)
class Batch:
    """Lengths, padding and window of one forward pass, for the layers of one kind.

    Args:
        n_queries, n_keys: New tokens, and keys that will arrive at the attention function; those of a static cache
            include room that is not filled yet.
        first_query, first_key: Their positions in the row, padding included. Keys before `first_key` were dropped by a
            sliding-window cache.
        window: Keys that the model's own mask lets a query see, its own included; None: all.
        documents: None where every row is one document without padding.
    """

    n_queries: int
    n_keys: int
    first_query: int
    first_key: int
    window: int | None
    documents: tuple[Document, ...] | None
    positions_checked: bool = False

    # `generate` prepares masks early for a static cache and treats what it gets as a tensor: it asks for `ndim` to tell
    # a padding mask (2) and calls `contiguous`. Both are answered so that this object passes through.
    ndim: ClassVar[int] = 0

    def contiguous(self) -> Batch:
        return self

    @property
    def filled_keys(self) -> int:
        """Keys that arrive and hold a token."""
        return self.first_query + self.n_queries - self.first_key

    def check_positions(self, position_ids: object) -> None:
        """Refuse position_ids that restart where transformers itself does not read them as packed documents.

        It reads them so only where there is neither a cache nor an attention mask; elsewhere tokens would attend
        across documents in silence. Checked once a forward pass; positions of more than one axis are not read.
        """
        if self.positions_checked or not isinstance(position_ids, Tensor) or position_ids.ndim != 2:
            return
        self.positions_checked = True
        if self.n_queries == 1:
            return
        for ids, continues in self._new_positions(position_ids):
            if (torch.diff(ids) <= 0).any() or (continues and ids[0] == 0):
                raise NotImplementedError(
                    "position_ids restart inside a row (packed documents), but a cache or an attention_mask is in use, "
                    "where transformers would attend across the documents: pass use_cache=False and no attention_mask"
                )

    def _new_positions(self, position_ids: Tensor) -> list[tuple[Tensor, bool]]:
        """The position ids of each document's new tokens, and whether it has cached ones."""
        if self.documents is None:
            return [(ids, self.first_query > 0) for ids in position_ids]
        shared = position_ids.shape[0] == 1
        return [
            (torch.cat([position_ids[0 if shared else d.row, a:z] for a, z in d.queries]), d.n_keys > d.n_queries)
            for d in self.documents
            if d.queries
        ]


def padded_documents(real: Bool[Tensor, "B N"], first_query: int, first_key: int) -> tuple[Document, ...]:
    """One document for each row of a padding mask over all positions so far, cached ones included."""
    everything, keys, queries = (_spans(real[:, start:]) for start in (0, first_key, first_query))
    dropped = real[:, :first_key].sum(1).tolist()
    return tuple(
        Document(row, queries[row], keys[row], dropped[row], holes=len(everything[row]) > 1)
        for row in range(real.shape[0])
    )


def packed_documents(ids: Int[Tensor, "B T"]) -> tuple[Document, ...]:
    """The documents of rows that hold several each; `ids` numbers them and never falls within a row."""
    documents = []
    for row, counts in enumerate(torch.unique_consecutive(line, return_counts=True)[1] for line in ids):
        bounds = [0, *torch.cumsum(counts, 0).tolist()]
        for span in pairwise(bounds):
            documents.append(Document(row, (span,), (span,), dropped=0, holes=False))
    return tuple(documents)


def pack(
    x: Float[Tensor, "B N H D"], rows: Sequence[int], spans: Sequence[Spans], zeros: Sequence[int]
) -> Float[Tensor, "tokens H D"]:
    """The real tokens of all documents end to end, each document after `zeros` rows of zeros."""
    tokens = sum(stop - start for document in spans for start, stop in document)
    if tokens == x.shape[0] * x.shape[1] and not any(zeros):
        return x.flatten(0, 1)
    lines = x.unbind(0)  # slicing a row, not the batch, keeps the backward pass linear in the number of documents
    pieces = [x.new_zeros(0, *x.shape[2:])]
    for row, document, count in zip(rows, spans, zeros, strict=True):
        if count:
            pieces.append(x.new_zeros(count, *x.shape[2:]))
        pieces.extend(lines[row][start:stop] for start, stop in document)
    return torch.cat(pieces)


def unpack(
    packed: Float[Tensor, "tokens H D"], rows: Sequence[int], spans: Sequence[Spans], shape: tuple[int, int]
) -> Float[Tensor, "B T H D"]:
    """The inverse of `pack` without zeros: tokens back at their places ``[B, T]``, zero where there is padding."""
    n_rows, n_tokens = shape
    flat = [
        (row * n_tokens + start, stop - start)
        for row, document in zip(rows, spans, strict=True)
        for start, stop in document
    ]
    pieces, filled = [], 0
    for (start, _), tokens in zip(flat, packed.split([length for _, length in flat]) if flat else (), strict=True):
        if start > filled:
            pieces.append(packed.new_zeros(start - filled, *packed.shape[1:]))
        pieces.append(tokens)
        filled = start + tokens.shape[0]
    pieces.append(packed.new_zeros(n_rows * n_tokens - filled, *packed.shape[1:]))
    return torch.cat(pieces).view(n_rows, n_tokens, *packed.shape[1:])


def _spans(real: Bool[Tensor, "B N"]) -> list[Spans]:
    """For each row the stretches ``(start, stop)`` of true."""
    edges = torch.diff(torch.nn.functional.pad(real.to(torch.int8), (1, 1)), dim=1)
    rows: list[list[tuple[int, int]]] = [[] for _ in range(real.shape[0])]
    for (row, start), (_, stop) in zip((edges == 1).nonzero().tolist(), (edges == -1).nonzero().tolist(), strict=True):
        rows[row].append((start, stop))
    return [tuple(spans) for spans in rows]
