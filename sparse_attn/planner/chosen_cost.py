"""What terms that choose or summarise cost a layer beside attention itself: what they keep, and their own arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..patterns import Anchors, AnchorTree, CoverBlocks, TopBlocks, VerticalSlash
from ..patterns.chosen import ChosenBlocks
from ..patterns.hashed import Hashed
from ..patterns.terms import Term
from .records import Layer, Memory, Scores


def kept_of_blocks(growing: Sequence[Memory], term: ChosenBlocks) -> list[Memory]:
    """One compressed key for each complete block, which a new token's query is scored against."""
    return [
        replace(one, name="keys of blocks", every=term.block, read=None)
        for one in growing
        if one.name == "keys" and isinstance(term, TopBlocks)
    ]


def kept_of_summaries(growing: Sequence[Memory], term: Anchors | AnchorTree, kv_heads: int) -> list[Memory]:
    """What makes summaries to come: the scan's state, or the tree's last nodes; and the tokens of the open block.

    A state holds r weighted sums of keys and of values, and for each r and KV head the sum and the top of its weights. Of a
    level of a tree the `fanout` last nodes are shown, and one more may wait to be.
    """
    width = sum(one.elements for one in growing)
    if not width:  # another layer keeps the keys
        return []
    if isinstance(term, Anchors):
        numbers, precision = term.r * (width + 2 * kv_heads), "float32"
    else:
        numbers, precision = (term.fanout + 1) * term.levels * term.r * width, "model"
    state = Memory("state of anchors", numbers, per_token=False, precision=precision, heads=kv_heads)  # type: ignore[arg-type]
    if term.block == 1:
        return [state]
    opened = Memory("open block", width, limit=term.block - 1, remainder=term.block, precision="model", heads=kv_heads)
    return [state, opened]


def work_of(term: Term, layer: Layer) -> list[Scores]:
    """A term's own arithmetic, in whole FLOPs; a fraction of one counts as one."""
    keys, values = layer.kv_heads * layer.head_dim, layer.kv_heads * layer.value_dim
    queries = layer.heads * layer.head_dim
    match term:
        case TopBlocks():  # a tile's queries and a block's keys are added up, and meet once for each KV head
            each = Scores("choice", -(-2 * keys // term.rows), "summaries", term.block)
            return [each, Scores("choice", queries + keys, "token")]
        case CoverBlocks():
            return [Scores("choice", -(-2 * queries // term.stride), "full", prefill_only=True)]
        case VerticalSlash():
            return [Scores("choice", 2 * queries * term.queries, "token", prefill_only=True)]
        case Hashed():  # a product with each of buckets / 2 directions; the others are their opposites
            return [Scores("choice", term.rounds * term.buckets * (queries + keys), "token")]
        case Anchors() | AnchorTree():
            return [Scores("anchors", _summing(term, keys, values), "token")]
        case _:
            return []


def _summing(term: Anchors | AnchorTree, keys: int, values: int) -> int:
    """A token's share of pooling, or of making nodes: a product of a query with each key, and two weighted sums."""
    one = 2 * keys + 2 * (keys + values)
    if isinstance(term, Anchors):
        return one + -(-term.r * one // term.block)
    # r queries read the block's tokens; those of a level above, fanout * r summaries for each of its nodes.
    above = sum(
        term.fanout * term.r * term.r * one / (term.block * term.fanout**level) for level in range(1, term.levels)
    )
    return term.r * one + -int(-above // 1)
