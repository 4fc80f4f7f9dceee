"""What the kernels are told of a pattern with chosen blocks, cached: where tiles and blocks stand, and what static parts name.

Batch examples are documents here: queries `[T, Hq, D]` and keys `[S, Hkv, D]` of all of them, one after the other. A block
of many keys is cut into equal parts of at most `most` keys, so that a program holds one: where the text says block below,
it means such a part.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from ...patterns import Pattern
from ...patterns.chosen import split_choice
from ..attention import tables
from ..attention.geometry import Geometry, Walk, geometry
from ..attention.tiles import FAR

Table = NDArray[np.int32]

PLAIN = Walk(1, 0, 0, None, -1)  # chosen blocks are read where they stand, whatever the static parts walk


@dataclass(frozen=True, eq=False)
class Places:
    """One pattern over one set of lengths; compared by identity, since equal ones are made once.

    Attributes:
        where: The static parts.
        k: Blocks that a tile chooses, as the caller counts them.
        parts: Into how many blocks of ours one of the caller's is cut.
        size: Keys of one of ours.
        rows: Positions that choose together.
        limit: The window that the chosen keys are cut to, in keys up to the query's own and after it; None: no cut.
    """

    where: Geometry
    k: int
    parts: int
    size: int
    rows: int
    limit: tuple[int, int] | None

    @property
    def slots(self) -> int:
        """Blocks of ours that a tile may choose."""
        return self.k * self.parts

    @property
    def n_tiles(self) -> int:
        return sum(self._tiles)

    @property
    def n_blocks(self) -> int:
        return sum(self._blocks)

    @property
    def always_masked(self) -> bool:
        """Whether every tile of keys is masked, for want of a cheap test that it need not be."""
        return bool(self.where.lists or self.where.passes or self.where.rows or self.limit)

    def arguments(self, device: torch.device) -> dict[str, Any]:
        """The static parts as the kernels read them; made once."""
        return self.where.once(("chosen", self.size, self.rows, device), lambda: self._arguments(device))  # type: ignore[no-any-return]

    def tile_table(self, device: torch.device) -> Tensor | None:
        """``[tiles, 2]``: the document of each tile that chooses, and its number there; None: one document, counted."""
        return self._table(device, "tiles", self._tile_table) if self.where.packed else None

    def block_table(self, device: torch.device) -> Tensor | None:
        """``[blocks, 2]``: the document of each block, and its number there; None: one document, counted."""
        return self._table(device, "blocks", self._block_table) if self.where.packed else None

    def first_blocks(self, device: torch.device) -> Tensor:
        """``[documents + 1]``: where each document's blocks begin."""
        return self._table(device, "first blocks", lambda: np.array([0, *accumulate(self._blocks)], np.int32))

    def query_tiles(self, device: torch.device) -> Tensor | None:
        """The tile of each query; None where each query is one."""
        return self._table(device, "query tiles", self._query_tiles) if self.rows > 1 else None

    @property
    def _tiles(self) -> list[int]:
        return [
            (own.n_keys - 1) // self.rows - own.first_position // self.rows + 1 if own.n_queries else 0
            for own in self.where.documents
        ]

    @property
    def _blocks(self) -> list[int]:
        whole = self.size * self.parts
        return [-(-own.n_keys // whole) * self.parts for own in self.where.documents]

    def _arguments(self, device: torch.device) -> dict[str, Any]:
        where = self.where
        lists = where.list_tables(device, "q") or (None, None, None)
        left, right = self.limit or (FAR, FAR)
        return {
            "documents": where.document_table(device), "parameters": where.numbers(device),
            "row_bits": where.row_tables(device)[0],
            "key_bits": self._table(device, "key bits", lambda: tables.key_bits(where)) if where.columns else None,
            "block_flags": self._table(device, "block flags", self._block_flags) if where.columns else None,
            "list_rows": lists[0], "list_begins": lists[1], "list_entries": lists[2],
            "n_documents": len(where.documents), "left": where.left, "right": where.right,
            "limit_left": left, "limit_right": right,
            "HAS_INTERVAL": where.has_interval, "CHUNKS": where.chunks, "ROWS": where.rows, "COLUMNS": where.columns,
            "LISTS": where.lists, "UNCUT": where.uncut, "PASSES": len(where.passes),
            "ALWAYS": self.always_masked, "LIMITED": self.limit is not None,
            "CAUSAL": where.causal, "PACKED": where.packed, "SIZE": self.size,
            "BLOCK_N": max(16, triton.next_power_of_2(self.size)),
        }  # fmt: skip

    def _table(self, device: torch.device, name: str, make: Any) -> Tensor:
        key = ("chosen", name, self.size, self.parts, self.rows)
        return self.where.once((device, *key), lambda: torch.from_numpy(make()).to(device))  # type: ignore[no-any-return]

    def _tile_table(self) -> Table:
        numbers = [
            np.stack([np.full(count, index), own.first_position // self.rows + np.arange(count)], axis=1)
            for index, (own, count) in enumerate(zip(self.where.documents, self._tiles, strict=True))
        ]
        return _joined(numbers)

    def _block_table(self) -> Table:
        return _joined(
            [np.stack([np.full(count, index), np.arange(count)], axis=1) for index, count in enumerate(self._blocks)]
        )

    def _query_tiles(self) -> Table:
        first, found = 0, [np.zeros(0, np.int64)]
        for own, count in zip(self.where.documents, self._tiles, strict=True):
            positions = np.arange(own.first_position, own.n_keys)
            found.append(first + positions // self.rows - own.first_position // self.rows)
            first += count
        return np.concatenate(found).astype(np.int32)

    def _block_flags(self) -> Table:
        """Which blocks hold a column."""
        bits = tables.key_bits(self.where)
        found: list[NDArray[Any]] = [np.zeros(0, np.int32)]
        for own, count in zip(self.where.documents, self._blocks, strict=True):
            padded = np.zeros(count * self.size, np.bool_)
            padded[: own.n_keys] = bits[own.k_start : own.k_stop] != 0
            found.append(np.any(padded.reshape(count, self.size), axis=1, keepdims=True)[:, 0])
        return np.concatenate(found).astype(np.int32)


@lru_cache(maxsize=64)
def places(
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    causal: bool,
    cu_seqlens_q: tuple[int, ...] | None,
    cu_seqlens_k: tuple[int, ...] | None,
    k: int,
    most: int,
) -> Places:
    """Places of a pattern with a `TopBlocks` term, for a choice of k blocks, cut to at most so many keys.

    Raises:
        ValueError: the pattern chooses no blocks.
        NotImplementedError: a choice of more than 4,096 blocks after cutting.
    """
    choice = split_choice(pattern)
    if choice is None:
        raise ValueError(f"pattern must have a TopBlocks term where blocks are selected, got {pattern!r}")
    term, limit = choice.term, choice.limit
    parts = next(count for count in range(-(-term.block // most), term.block + 1) if term.block % count == 0)
    if k * parts > 4096:
        raise NotImplementedError(
            f"implementation 'triton' takes at most 4096 chosen blocks a query, of at most {most} keys each, and "
            f"{term!r} makes {k * parts}; use 'reference'"
        )
    sides = None
    if limit is not None:
        sides = (min(limit.left, FAR), 0 if causal else min(limit.ahead, FAR))
    where = geometry(pattern, n_queries, n_keys, causal, cu_seqlens_q, cu_seqlens_k)
    return Places(where, k, parts, term.block // parts, term.rows, sides)


def _joined(parts: list[NDArray[Any]]) -> Table:
    return np.concatenate([np.zeros((0, 2), np.int64), *parts]).astype(np.int32)
