"""What the kernels are told of a pattern and its lengths, cached: the layers of a model ask for the same few.

Positions are walked as x = 0, 1, ... on a grid, position = residue + x * step: a dilated pass has its dilation as step and
every residue as a grid of its own; the main pass, which reads all other parts, has step 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...patterns import Layout, Pattern
from ...patterns.documents import Document, check_examples, split_documents
from ...patterns.layout import Cut, Groups
from ...patterns.parts import DilatedPass, Interval
from ...patterns.terms import Summaries
from . import tables
from .repeated_launch import Launches
from .tiles import FAR


class Walk(NamedTuple):
    """One launch's walk over the keys.

    Attributes:
        step, left, right: The grid, and the hops that a query sees before (its own included) and after it.
        residue: The only residue that is walked; None: all of them.
        earlier: How many dilated passes came before, whose keys are left out; -1: this is the main pass.
    """

    step: int
    left: int
    right: int
    residue: int | None
    earlier: int

    @property
    def dilated(self) -> bool:
        return self.earlier >= 0


@dataclass(frozen=True, eq=False)
class Geometry:
    """One pattern over one set of lengths; compared by identity, since equal ones are made once.

    Attributes:
        pattern, causal, documents, packed: What it was made from; a plain sequence is one document.
        main: The pass over interval, columns, lists and extra keys; None if the pattern has dilated terms only.
        passes: The dilated passes, which continue where the main pass ended.
        has_interval, chunks: Whether queries have an interval, and the number of chunk sizes in it.
        rows, columns, lists: How many groups of full rows, columns and block lists there are; those of one group share
            their limits (and block size).
        list_block: The largest block of a list, 0 without lists.
        few_columns: The number of columns where it does not grow with the sequence, otherwise 0.
        uncut: Whether columns are seen from everywhere, but for causality.
        anchors: The extra keys' term.
        parameters: Chunks, then the limits of rows, of columns, of lists, and of passes, as the kernels read them.
        launches: Those of kernels that read its tables.
    """

    pattern: Pattern
    causal: bool
    documents: tuple[Document, ...]
    packed: bool
    main: Walk | None
    passes: tuple[Walk, ...]
    has_interval: bool
    chunks: int
    rows: int
    columns: int
    lists: int
    list_block: int
    few_columns: int
    uncut: bool
    anchors: Summaries | None
    parameters: tuple[int, ...]
    groups: Groups
    launches: Launches = field(default_factory=Launches)
    _made: dict[Any, Any] = field(default_factory=dict)

    @property
    def walks(self) -> Iterator[Walk]:
        """The passes in order."""
        if self.main is not None:
            yield self.main
        yield from self.passes

    @property
    def left(self) -> int:
        return _side(self._interval.left)

    @property
    def right(self) -> int:
        return _side(self._interval.right)

    @property
    def _interval(self) -> Interval:
        return self.groups.interval or Interval(1, 0)

    def excludes(self, walk: Walk) -> bool:
        """Whether a dilated pass meets keys that an earlier part has named."""
        return walk.dilated and (walk.earlier > 0 or self.main is not None)

    def walked(self, walk: Walk) -> int:
        """Keys that a query of a pass walks along at most in one run; 0 where it walks along several runs."""
        if (self.columns and not self.few_columns) or self.lists:
            return 0
        runs = [walk.left + walk.right, *(min(chunk.size, FAR) for chunk in self._interval.chunks)]
        return FAR if self.rows else min(max(runs), FAR)

    def layout(self, rows: int) -> Layout:
        """The pattern's layout for blocks of so many query rows."""
        return self.once(("layout", rows), lambda: self._layout(rows))

    def blocks(self, walk: Walk, rows: int, axis: str, device: torch.device) -> tuple[int, Tensor | None]:
        """How many blocks of so many queries (axis "q") or keys ("k") a pass has, and their table ``[blocks, 4]``.

        A row holds document, residue, first x and end. None where the kernels can count by themselves.
        """
        if not self.packed and not walk.dilated:
            document = self.documents[0]
            return -(-(document.n_queries if axis == "q" else document.n_keys) // rows), None
        table = self.once(("blocks", walk, rows, axis), lambda: tables.blocks(self.documents, walk, rows, axis))
        return len(table), self._on(device, ("blocks", walk, rows, axis), table)

    def numbers(self, device: torch.device) -> Tensor:
        """`parameters` on the device; one number at least, so that there is something to point to."""
        return self._on(device, "parameters", tables.vector(self.parameters or (0,)))

    def document_table(self, device: torch.device) -> Tensor | None:
        """``[documents, 7]``: first query and end, first key and end, first row of extra keys, first full row and end."""
        if not (self.packed or self.rows):
            return None
        return self._table(device, "documents", lambda: tables.documents(self))

    def key_bits(self, device: torch.device) -> Tensor | None:
        """For each key in which groups it is a column, one bit a group; None where no kernel needs it."""
        if not self.columns or not (self.columns > 1 or self.lists or self.passes):
            return None
        return self._table(device, "key bits", lambda: tables.key_bits(self))

    def row_tables(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """For each query in which groups it is a full row, one bit a group; and the full rows' positions in order."""
        if not self.rows:
            return None, None
        bits = self._table(device, "row bits", lambda: tables.row_bits(self))
        return bits, self._table(device, "row positions", lambda: tables.row_positions(self))

    def column_tables(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The columns' positions in their document and their tokens, group by group; None if there are none."""
        if not self.columns:
            return None
        positions = self._table(device, "column positions", lambda: tables.column_positions(self))
        if not len(positions):
            return None
        return positions, self._table(device, "column tokens", lambda: tables.column_tokens(self))

    def even_columns(self) -> slice | None:
        """The columns' tokens as a slice, if they stand at equal distances."""
        return self.once("even columns", lambda: tables.even_columns(self))  # type: ignore[no-any-return]

    @property
    def most_columns(self) -> int:
        """The largest number of columns of a document in one group."""
        return self.once("most columns", lambda: tables.most_columns(self))  # type: ignore[no-any-return]

    def column_tiles(self, columns: int) -> int:
        """How many blocks of so many columns there are."""
        name = ("column tiles", columns)
        return self.once(name, lambda: len(tables.column_blocks(self, columns, 1, 1 << 62)))  # type: ignore[no-any-return]

    def column_ranges(self, rows: int, device: torch.device) -> Tensor:
        """``[query blocks, groups, 6]``: of the columns before the block's interval the first, the end of those that
        all its queries see, and the end; of those after it the first, the first that all see, and the end."""
        return self._table(device, ("column ranges", rows), lambda: tables.column_ranges(self, rows))

    def column_blocks(
        self, columns: int, most: int, least_rows: int, device: torch.device
    ) -> tuple[Tensor, Tensor, tuple[slice, ...]]:
        """Blocks of so many columns, each split among programs that take equal shares of the queries which see it.

        Args:
            most: Splits of all blocks together, about.
            least_rows: Fewer queries than this are not split.

        Returns:
            A table ``[splits, 6]`` (document, group, first column and end, number of the split, splits of its block);
            of each column its block's first split, the number of splits, and the column's place in the block
            ``[columns, 3]``; and each group's columns.
        """
        name = ("column blocks", columns, most, least_rows)
        made = self.once(name, lambda: tables.column_blocks(self, columns, most, least_rows))
        table = self._on(device, name, made)
        places = self._table(device, (*name, "places"), lambda: tables.column_places(made))
        return table, places, self.once("column groups", lambda: tables.column_groups(self))

    def extra_documents(self, device: torch.device) -> Tensor | None:
        """The document of each row of extra keys; None without packing."""
        return self._table(device, "extra documents", lambda: tables.extra_documents(self)) if self.packed else None

    def list_tables(self, device: torch.device, axis: str) -> tuple[Tensor, Tensor, Tensor] | None:
        """Compressed rows of all lists by query block (axis "q") or key block ("k").

        Where each list's first row stands, by list and document ``[lists, documents]``; where rows begin; and each
        entry's (query block, key block) ``[entries, 2]``, counted in its document.
        """
        if not self.lists:
            return None
        made = self.once(("lists", axis), lambda: tables.lists(self, axis))
        first, begins, entries = (self._on(device, ("lists", axis, nth), made[nth]) for nth in range(3))
        return first, begins, entries

    def _layout(self, rows: int) -> Layout:
        lengths: dict[str, Any] = {"n_queries": self.documents[-1].q_stop, "n_keys": self.documents[-1].k_stop}
        if self.packed:
            first = self.documents[0]
            lengths |= {
                "cu_seqlens_q": [first.q_start, *(document.q_stop for document in self.documents)],
                "cu_seqlens_k": [first.k_start, *(document.k_stop for document in self.documents)],
            }
        return self.pattern.layout(**lengths, block_q=rows, block_k=rows, causal=self.causal)

    def _table(self, device: torch.device, name: Any, make: Any) -> Tensor:
        return self._on(device, name, self.once(name, make))

    def once(self, name: Any, make: Any) -> Any:
        """What was made under a name, or what `make` makes now."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _on(self, device: torch.device, name: Any, table: Any) -> Tensor:
        return self.once((device, name), lambda: torch.from_numpy(table).to(device))  # type: ignore[no-any-return]


@lru_cache(maxsize=64)
def geometry(
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    causal: bool,
    cu_seqlens_q: tuple[int, ...] | None,
    cu_seqlens_k: tuple[int, ...] | None,
) -> Geometry:
    """The geometry of a pattern. Tables are made when a kernel asks for them: a window has none.

    Raises:
        NotImplementedError: more than 31 groups of columns or of full rows, cut to windows of their own.
    """
    groups = Groups(pattern, causal)
    for kind, cuts in (("columns", groups.columns), ("global rows", groups.full_rows)):
        if len(cuts) > 31:
            raise NotImplementedError(
                f"implementation 'triton' takes {kind} cut to at most 31 different windows, {pattern!r} has {len(cuts)}; "
                "use 'reference'"
            )
    documents = split_documents(n_queries, n_keys, cu_seqlens_q, cu_seqlens_k)
    check_examples(pattern, documents, packed=cu_seqlens_q is not None)
    interval = groups.interval or Interval(1, 0)
    main = Walk(1, _side(interval.left), _side(interval.right), None, -1)
    beside = groups.interval or groups.columns or groups.lists or groups.full_rows or groups.anchors
    # A first pass over one residue would leave the other rows unwritten.
    alone = groups.dilated and groups.dilated[0].residue is None and not beside
    return Geometry(
        pattern=pattern,
        causal=causal,
        documents=documents,
        packed=cu_seqlens_q is not None,
        main=None if alone else main,
        passes=tuple(_walk(step, nth) for nth, step in enumerate(groups.dilated)),
        has_interval=groups.interval is not None,
        chunks=len(interval.chunks),
        rows=len(groups.full_rows),
        columns=len(groups.columns),
        lists=len(groups.lists),
        list_block=max((block for block, _ in groups.lists), default=0),
        few_columns=tables.few_columns(groups),
        uncut=all(left is None and right == (0 if causal else None) for left, right in groups.columns),
        anchors=groups.anchors,
        parameters=tuple(_parameters(groups, interval)),
        groups=groups,
    )


def _walk(step: DilatedPass, nth: int) -> Walk:
    return Walk(min(step.dilation, FAR), _side(step.left), _side(step.right), step.residue, nth)


def _parameters(groups: Groups, interval: Interval) -> Iterator[int]:
    for chunk in interval.chunks:
        yield from (min(chunk.size, FAR), _side(chunk.left), _side(chunk.right))
    cuts: list[Cut] = [*groups.full_rows, *groups.columns]
    for left, right in cuts:
        yield from (_side(left), _side(right))
    for block, (left, right) in groups.lists:
        yield from (min(block, FAR), _side(left), _side(right))
    for step in groups.dilated:
        residue = -1 if step.residue is None else min(step.residue, FAR)
        yield from (min(step.dilation, FAR), _side(step.left), _side(step.right), residue)


def _side(side: int | None) -> int:
    return FAR if side is None else min(side, FAR)
