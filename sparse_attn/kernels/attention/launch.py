"""What several kernels are launched with: the tensors of a call, the parts of a pattern as arguments, gathered columns."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .geometry import Geometry, Walk
from .tiles import Capability, Tile, can_use_tma, tile_source


class Inputs(NamedTuple):
    """The tensors of a call, their head dims contiguous.

    Attributes:
        q, k, v: ``[B, T, Hq, D]``, ``[B, S, Hkv, D]``.
        extra_k, extra_v: ``[B, rows * R, Hkv, D]``, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    extra_k: Tensor | None = None
    extra_v: Tensor | None = None


class Gradients(NamedTuple):
    """What the backward kernels read beside the inputs.

    Attributes:
        d_out: ``[B, T, Hq, D]``, head dim contiguous.
        lse2, delta: ``[B, Hq, T]`` float32, see `backward_rows`.
    """

    d_out: Tensor
    lse2: Tensor
    delta: Tensor


_NOTHING: dict[str, Any] = {
    "column_k": None, "column_v": None, "column_positions": None, "column_tokens": None, "column_ranges": None,
    "stride_cb": 0, "stride_ct": 0, "stride_ch": 0, "BLOCK_C": 0, "COLUMN_TMA": False, "SIDES": 1,
    "list_k": None, "list_v": None, "BLOCK_L": 16, "LIST_TMA": False,
    "extra_k": None, "extra_v": None, "stride_eb": 0, "stride_et": 0, "stride_eh": 0, "extra_block": 1,
    "EXTRA": 0, "BLOCK_E": 16, "EXTRA_TMA": False,
}  # fmt: skip


def lengths_of(kernel: str) -> list[str]:
    """Arguments that change with the length alone: a kernel is not compiled anew for them."""
    own = {
        "forward": ["n_queries", "n_keys", "n_documents", "n_blocks"],
        "backward_rows": ["n_queries", "stride_lb", "stride_sb"],
        "backward_keys": ["n_queries", "n_keys", "n_documents", "n_blocks"],
        "backward_columns": ["n_keys", "n_blocks"],
        "column_sums": ["first_column", "n_columns"],
        "backward_queries": ["n_queries", "n_keys", "n_documents", "n_blocks"],
        "backward_extra": ["n_keys", "n_extra"],
    }
    return own[kernel]


def shared_arguments(where: Geometry, walk: Walk, device: torch.device) -> dict[str, Any]:
    """The pattern's parts as one pass reads them; made once, since a short call takes no longer than making them."""
    return where.once(("arguments", walk, device), lambda: _shared_arguments(where, walk, device))  # type: ignore[no-any-return]


def _shared_arguments(where: Geometry, walk: Walk, device: torch.device) -> dict[str, Any]:
    row_bits, _ = where.row_tables(device)
    lists = where.list_tables(device, "q") or (None, None, None)
    return {
        "documents": where.document_table(device), "parameters": where.numbers(device), "row_bits": row_bits,
        "key_bits": where.key_bits(device),
        "list_rows": lists[0], "list_begins": lists[1], "list_entries": lists[2],
        "n_documents": len(where.documents), "left": where.left, "right": where.right,
        "step": walk.step, "hop_left": walk.left, "hop_right": walk.right,
        "HAS_INTERVAL": where.has_interval, "CHUNKS": where.chunks, "ROWS": where.rows, "COLUMNS": where.columns,
        "LISTS": where.lists, "UNCUT": where.uncut,
        "EARLIER": walk.earlier, "EXCLUDES": where.excludes(walk),
        "TABLE": where.packed or walk.dilated, "PACKED": where.packed,
    }  # fmt: skip


def key_arguments(inputs: Inputs, where: Geometry, walk: Walk, tile: Tile, capability: Capability) -> dict[str, Any]:
    """What a query block reads beside its interval: columns gathered, extra keys, and the tiles of both and of lists."""
    beside = where.columns or where.lists or where.anchors
    return _beside(inputs, where, walk, tile, capability) if beside and not walk.dilated else _NOTHING


def _beside(inputs: Inputs, where: Geometry, walk: Walk, tile: Tile, capability: Capability) -> dict[str, Any]:
    return _NOTHING | {
        **_columns(inputs, where, walk, tile, capability),
        **_extra(inputs, where, walk, tile, capability),
        **_lists(inputs, where, walk, tile, capability),
    }


def column_tile(where: Geometry, most: int) -> int:
    """Columns of a tile: few for few columns, so that four sinks do not cost a whole tile; the same at every length."""
    return _tile_of(where.few_columns, most) if where.few_columns else most


def _tile_of(count: int, most: int) -> int:
    """Keys of a tile that holds `count` of them, where that is not too many; what a matrix instruction takes at least."""
    return min(most, max(16, triton.next_power_of_2(count)))


def gather_columns(inputs: Inputs, where: Geometry) -> tuple[Tensor, Tensor]:
    """The columns' keys and values as short tensors ``[B, C, Hkv, D]``, of the same strides: views where columns stand at
    equal distances, as sinks do, and k and v lie alike."""
    evenly = where.even_columns()
    if evenly is not None and inputs.k.stride() == inputs.v.stride():
        return inputs.k[:, evenly], inputs.v[:, evenly]
    columns = where.column_tables(inputs.k.device)
    assert columns is not None
    return inputs.k.index_select(1, columns[1]), inputs.v.index_select(1, columns[1])


def _columns(inputs: Inputs, where: Geometry, walk: Walk, tile: Tile, capability: Capability) -> dict[str, Any]:
    columns = where.column_tables(inputs.k.device)
    if columns is None:
        return {}
    positions, tokens = columns
    block = column_tile(where, tile.n)
    keys, values = gather_columns(inputs, where)
    use_tma = can_use_tma(capability, where, walk, keys, values)
    return {
        "column_k": tile_source(keys, block, use_tma), "column_v": tile_source(values, block, use_tma),
        "column_positions": positions, "column_tokens": tokens,
        "column_ranges": where.column_ranges(tile.m, keys.device),
        "stride_cb": keys.stride(0), "stride_ct": keys.stride(1), "stride_ch": keys.stride(2),
        "BLOCK_C": block, "COLUMN_TMA": use_tma, "SIDES": 1 if where.causal else 2,
    }  # fmt: skip


def _lists(inputs: Inputs, where: Geometry, walk: Walk, tile: Tile, capability: Capability) -> dict[str, Any]:
    if not where.lists:
        return {}
    block = _tile_of(where.list_block, tile.n)
    use_tma = can_use_tma(capability, where, walk, inputs.k, inputs.v)
    keys, values = (tile_source(tensor, block, use_tma) for tensor in (inputs.k, inputs.v))
    return {"list_k": keys, "list_v": values, "BLOCK_L": block, "LIST_TMA": use_tma}


def _extra(inputs: Inputs, where: Geometry, walk: Walk, tile: Tile, capability: Capability) -> dict[str, Any]:
    keys, values = inputs.extra_k, inputs.extra_v
    if keys is None or values is None or where.anchors is None:
        return {}
    block = _tile_of(where.anchors.extra_keys, tile.n)
    use_tma = can_use_tma(capability, where, walk, keys, values)
    return {
        "extra_k": tile_source(keys, block, use_tma), "extra_v": tile_source(values, block, use_tma),
        "stride_eb": keys.stride(0), "stride_et": keys.stride(1), "stride_eh": keys.stride(2),
        "extra_block": where.anchors.block, "EXTRA": where.anchors.extra_keys,
        "BLOCK_E": block, "EXTRA_TMA": use_tma,
    }  # fmt: skip
