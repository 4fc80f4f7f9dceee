"""Which queries read which keys of their chosen blocks: tiles of queries, some at a time, as flat indices and a mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..patterns import Pattern
from ..patterns.chosen import Choice, split_choice
from ..patterns.documents import Document

ELEMENTS = 1 << 21  # numbers gathered at once: keys, values and logits of some tiles, 8 MiB each in float32


@dataclass(frozen=True, eq=False)
class Gathered:
    """M tiles, each of one head and document, with the n keys of their chosen blocks.

    Attributes:
        queries: Row of q as ``[B * T * Hq, D]``, for each of a tile's positions and heads; where `inside` is False it is
            some other row of the tile's own document.
        inside: Whether the position is one of the queries.
        keys: Row of k as ``[B * S * Hkv, D]``; where no query keeps it, it is some other row of the document.
        keep: Whether the query at a position counts a key.
        blocks: Row of the keys as whole blocks, ``[B * Hkv * blocks, block * D]``, those of all documents.
    """

    queries: Int[Tensor, "M R G"]
    inside: Bool[Tensor, "M R"]
    keys: Int[Tensor, "M n"]
    keep: Bool[Tensor, "M R n"]
    blocks: Int[Tensor, "M K"]


class ChosenKeys:
    """The tiles of one call, walked once forward and once backward; what is gathered is made anew at each walk."""

    def __init__(
        self,
        selected: Int[Tensor, "B N H K"],
        patterns: Sequence[Pattern],
        documents: Sequence[Document],
        *,
        causal: bool,
        heads: tuple[int, int],
        head_dim: int,
        packed: bool,
    ) -> None:
        choice = split_choice(patterns[0])
        assert choice is not None
        self.selected, self.patterns, self.documents = selected, patterns, documents
        self.causal, self.heads, self.head_dim, self.packed = causal, heads, head_dim, packed
        self.term = choice.term
        self.n_blocks = sum(-(-document.n_keys // self.term.block) for document in documents)

    def __iter__(self) -> Iterator[Gathered]:
        first_tile, first_block = 0, 0
        for index, document in enumerate(self.documents):
            tiles = self.term.tiles(document.n_queries, document.n_keys)
            own = self.selected[:, first_tile : first_tile + tiles]
            per_pattern = self.selected.shape[2] // len(self.patterns)
            for number, pattern in enumerate(self.patterns):
                choice = split_choice(pattern.example(index) if self.packed else pattern)
                assert choice is not None
                heads = range(number * per_pattern, (number + 1) * per_pattern)
                yield from self._tiles(own, heads, choice, document, first_block)
            first_tile += tiles
            first_block += -(-document.n_keys // self.term.block)

    def _tiles(
        self, own: Int[Tensor, "B N H K"], heads: range, choice: Choice, document: Document, first_block: int
    ) -> Iterator[Gathered]:
        """All tiles of a document and some heads; a tile is found by its number, in the order batch, head, tile."""
        n_batch, n_tiles, _, width = own.shape
        hq, _ = self.heads
        at_once = width * self.term.block * max(self.head_dim, self.term.rows * hq // own.shape[2])
        step = max(1, ELEMENTS // max(at_once, 1))
        count = n_batch * len(heads) * n_tiles if width else 0
        for start in range(0, count, step):
            number = torch.arange(start, min(start + step, count), device="cpu")
            batch, rest = number // (len(heads) * n_tiles), number % (len(heads) * n_tiles)
            head, tile = rest // n_tiles + heads.start, rest % n_tiles
            chosen = own[batch, tile, head].long()
            gathered = self._gather(chosen, batch, head, tile, choice, document, first_block)
            if gathered is not None:
                yield gathered

    def _gather(
        self,
        chosen: Int[Tensor, "M K"],
        batch: Int[Tensor, " M"],
        head: Int[Tensor, " M"],
        tile: Int[Tensor, " M"],
        choice: Choice,
        document: Document,
        first_block: int,
    ) -> Gathered | None:
        block, rows, n_keys = self.term.block, self.term.rows, document.n_keys
        hq, hkv = self.heads
        chosen = chosen.masked_fill(chosen * block >= n_keys, -1)
        width = int((chosen >= 0).sum(1).max())
        if not width:
            return None
        chosen = chosen.gather(1, (chosen < 0).sort(dim=1, stable=True).indices[:, :width])  # those that name a block

        i = (document.first_position // rows + tile)[:, None] * rows + torch.arange(rows, device="cpu")
        inside = (i >= document.first_position) & (i < n_keys)
        t = (i - document.first_position).clamp(0, document.n_queries - 1) + document.q_start
        group = hq // self.selected.shape[2]
        members = head[:, None] * group + torch.arange(group, device="cpu")
        n_queries, total_keys = self.documents[-1].q_stop, self.documents[-1].k_stop
        queries = (batch[:, None, None] * n_queries + t[:, :, None]) * hq + members[:, None, :]

        j = (chosen[:, :, None] * block + torch.arange(block, device="cpu")).flatten(1)
        keep = _keep(choice, i, j, n_keys, self.causal) & inside[:, :, None]
        own_head = head * hkv // self.selected.shape[2]
        position = j.clamp(0, n_keys - 1) + document.k_start
        keys = (batch[:, None] * total_keys + position) * hkv + own_head[:, None]
        blocks = (batch * hkv + own_head)[:, None] * self.n_blocks + first_block + chosen.clamp(min=0)
        return Gathered(queries, inside, keys, keep, blocks)


def _keep(
    choice: Choice, i: Int[Tensor, "M R"], j: Int[Tensor, "M n"], n_keys: int, causal: bool
) -> Bool[Tensor, "M R n"]:
    """Keys of chosen blocks that count: there, not after the query, inside the cut, and named by no static term."""
    queries, keys = i.numpy()[:, :, None], j.numpy()[:, None, :]
    keep = (keys >= 0) & (keys < n_keys) & ((keys <= queries) if causal else (queries >= 0))
    if choice.limit is not None:
        keep &= choice.limit.keeps(queries, keys, n_keys, causal)
    for clause in () if choice.static is None else choice.static.terms:
        keep &= ~clause.keeps(queries, keys, n_keys, causal)
    return torch.from_numpy(keep)
