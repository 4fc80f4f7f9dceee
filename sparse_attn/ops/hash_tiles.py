"""Which keys hashed queries read, laid out as tiles: in each round, queries that read the same two chunks of a bucket.

A query of bucket b that sees n keys of it reads the chunk of the last one and the chunk before. All queries of one bucket and
chunk read the same keys but for the last ones: sorted, they stand together, and are cut into tiles of `rows` queries. How
many tiles that makes hangs on the content; at most as many as `most_tiles` says, so that shapes do not, and nothing
waits for the device.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..patterns import Hashed


class Order(NamedTuple):
    """A document's keys sorted by bucket, then by position; by round, example and KV head, ``[rounds, B, Hkv, ...]``."""

    buckets: Int[Tensor, "rounds B Hkv S"]  # of the keys, unsorted
    ranks: Int[Tensor, "rounds B Hkv S"]  # how many earlier keys a key's bucket has, unsorted
    keys: Int[Tensor, "rounds B Hkv S"]  # positions in the sorted order
    places: Int[Tensor, "rounds B Hkv S"]  # bucket * S + position, ascending
    starts: Int[Tensor, "rounds B Hkv buckets"]  # where each bucket begins

    def of_heads(self, group: int) -> "Order":
        """The same for each query head of groups of so many."""
        return self if group == 1 else Order(*(part.repeat_interleave(group, 2) for part in self))


def key_order(buckets: Int[Tensor, "rounds B Hkv S"], n_buckets: int) -> Order:
    n_keys = buckets.shape[-1]
    position = torch.arange(n_keys, device=buckets.device)
    places, keys = (buckets.contiguous() * n_keys + position).sort(-1)
    first = (torch.arange(n_buckets, device=buckets.device) * n_keys).expand(*buckets.shape[:-1], -1)
    starts = torch.searchsorted(places, first.contiguous())
    ranks = torch.empty_like(keys).scatter_(-1, keys, position.expand_as(keys)) - starts.gather(-1, buckets)
    return Order(buckets, ranks, keys, places, starts)


class Reach(NamedTuple):
    """What each query sees of its bucket in each round: the keys of ranks `lowest` to `seen` - 1."""

    buckets: Int[Tensor, "rounds B Hq T"]
    starts: Int[Tensor, "rounds B Hq T"]  # where the bucket begins in the order of keys
    lowest: Int[Tensor, "rounds B Hq T"]
    seen: Int[Tensor, "rounds B Hq T"]


def reach_of(q_buckets: Int[Tensor, "rounds B Hq T"], order: Order, i: Int[Tensor, " T"], chunk: int) -> Reach:
    """For queries at positions i; `order` is that of the query heads."""
    starts = order.starts.gather(-1, q_buckets)
    wanted = (q_buckets * order.keys.shape[-1] + i).contiguous()
    count = torch.searchsorted(order.places, wanted, right=True) - starts  # keys up to i
    lowest = ((count - 1) // chunk - 1).clamp(min=0) * chunk
    return Reach(q_buckets, starts, lowest, count)


class Tiles(NamedTuple):
    """One round's queries in tiles, `rows` of them in each, and the keys that each tile reads.

    A slot without a query holds some other query's number and is not `filled`; a tile without any reads some keys for it. They
    are spread, since the gradient adds up what one key gets one after the other.
    """

    queries: Int[Tensor, "B Hq tiles rows"]
    filled: Bool[Tensor, "B Hq tiles rows"]
    lowest: Int[Tensor, "B Hq tiles"]  # rank of a tile's first key in its bucket
    keys: Int[Tensor, "B Hq tiles keys"]
    slots: Int[Tensor, "B Hq T"]  # where each query stands: tile * rows + row


def most_tiles(n_queries: int, n_keys: int, term: Hashed, rows: int) -> int:
    """A bucket of n keys has at most n // chunk + 1 pairs of chunks, and each of them one tile that is not full."""
    groups = min(n_queries, n_keys // term.chunk + term.buckets)
    return min(n_queries, n_queries // rows + groups)


def tiles_of(reach: Reach, order: Order, term: Hashed, number: int) -> Tiles:
    """The tiles of one round."""
    buckets, starts, lowest, seen = (part[number] for part in reach)
    n_queries, n_keys, device = buckets.shape[-1], order.keys.shape[-1], buckets.device
    rows = min(term.chunk, n_queries)
    n_tiles = most_tiles(n_queries, n_keys, term, rows)
    position = torch.arange(n_queries, device=device)
    by_bucket = (buckets * n_queries + position).sort(-1).indices
    # Grows with the position inside a bucket: the order by bucket and position is one by chunk, too.
    chunk = (seen - 1).clamp(min=0) // term.chunk
    group = (buckets * (n_keys // term.chunk + 1) + chunk).gather(-1, by_bucket)
    begins = torch.cat([torch.ones_like(group[..., :1]), group[..., 1:] != group[..., :-1]], -1).bool()
    inside = position - torch.where(begins, position, 0).cummax(-1).values
    row = inside % rows
    slot = ((row == 0).cumsum(-1) - 1) * rows + row

    spread = (torch.arange(n_tiles * rows, device=device) % n_queries).expand(*slot.shape[:-1], -1)
    queries = spread.scatter(-1, slot, by_bucket).unflatten(-1, (n_tiles, rows))
    filled = torch.zeros_like(spread, dtype=torch.bool).scatter(-1, slot, True).unflatten(-1, (n_tiles, rows))
    first = queries[..., 0]
    lowest = lowest.gather(-1, first)
    places = (starts.gather(-1, first) + lowest)[..., None] + torch.arange(2 * term.chunk, device=device)
    keys = order.keys[number].gather(-1, places.clamp(max=n_keys - 1).flatten(-2)).view_as(places)
    return Tiles(queries, filled, lowest, keys, torch.empty_like(slot).scatter(-1, by_bucket, slot))


def kept(tiles: Tiles, reach: Reach, order: Order, number: int) -> Bool[Tensor, "B Hq tiles rows keys"]:
    """Which keys of its tile a query sees in this round and saw in no earlier one."""

    def of_queries(x: Tensor) -> Tensor:
        return x.gather(-1, tiles.queries.flatten(-2)).view_as(tiles.queries)[..., None]

    def of_keys(x: Tensor) -> Tensor:
        return x.gather(-1, tiles.keys.flatten(-2)).view_as(tiles.keys)[..., None, :]

    rank = (tiles.lowest[..., None] + torch.arange(tiles.keys.shape[-1], device=tiles.keys.device))[..., None, :]
    keep = (rank < of_queries(reach.seen[number])) & tiles.filled[..., None]
    for earlier in range(number):
        again = of_keys(order.buckets[earlier]) == of_queries(reach.buckets[earlier])
        again &= of_keys(order.ranks[earlier]) >= of_queries(reach.lowest[earlier])
        keep &= ~again
    return keep
