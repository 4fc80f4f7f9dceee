"""What vLLM's paged cache allocates for a batch: pages, paddings and reserves.

- Tokens live in pages of 16; the last page of a sequence is partly empty.
- Layers are put in groups of the same kind and equal size; a block id stands for one page in each layer of a group,
  so a group that is short of layers is padded.
- A recurrent state takes one page of its layer. Where a model has both, attention's page is raised to a multiple of 16
  tokens that holds a state, and the state's page is padded to it.
- A window holds its W - 1 tokens, those in flight of a prefill step, and one page more where it starts inside a page.
- A model with chunked layers loses its hybrid allocation (vLLM turns it off by default there): every layer, windows too,
  keeps every token.
- One block is reserved as the null block.

Source: vLLM, v1/kv_cache_interface.py (page sizes, max_memory_usage_bytes), v1/core/kv_cache_utils.py (groups),
model_executor/models/config.py (attention's page beside a state's), as of version 0.11.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction

from .bill import Item, KvCost, LayerCost, bits_of, bytes_of, plain, shard
from .dtypes import PLAIN_BITS, state_bits
from .records import Layer, Memory, Model

PAGE_TOKENS = 16
_PADDED_GROUP = Fraction(5, 4)  # a kind with under 1.25 times the layers of the smallest: one padded group


@dataclass(frozen=True)
class _Spec:
    """One layer's pages: of which kind, bytes of a token (attention) or of the whole state (recurrent)."""

    kind: str
    limit: int | None
    token_bytes: int
    state_bytes: int = 0


@dataclass(frozen=True)
class _Group:
    """Layers that share block ids: `rows` pages for each block of `tokens` tokens, some of them padding."""

    spec: _Spec
    layers: tuple[int, ...]
    rows: int
    tokens: int
    page: int


@dataclass(frozen=True)
class Allocation:
    """How vLLM would lay a model's cache out, whatever the context."""

    groups: tuple[_Group, ...]
    reserved: int
    chunk: int
    notes: tuple[str, ...]

    def bytes_at(self, context: int) -> tuple[int, int]:
        """Bytes of one sequence of `context` tokens, and bytes reserved once."""
        used = sum(group.page * group.rows * self.pages(group, context) for group in self.groups)
        return used, self.reserved

    def pages(self, group: _Group, context: int) -> int:
        """Blocks that one sequence holds in a group."""
        spec, tokens = group.spec, group.tokens
        if spec.state_bytes:
            return 1
        if spec.limit is None:
            return -(-context // tokens)
        held = min(spec.limit - 1 + self.chunk, context)
        return min(-(-held // tokens) + 1, max(1, -(-context // tokens)))


def allocate(model: Model, kv_dtype: str, chunk: int, tensor_parallel: int) -> Allocation:
    """Specs of all layers, grouped; arguments as in `kv_cost`."""
    specs: dict[_Spec, list[int]] = defaultdict(list)
    flat = any(layer.kind == "chunked" for layer in model.layers)
    for layer in model.layers if model.causal else ():
        for spec in _specs(layer, model, kv_dtype, tensor_parallel, flat):
            specs[spec].append(layer.index)
    if not specs:
        return Allocation((), 0, chunk, ())
    attention = [spec for spec in specs if not spec.state_bytes]
    states = [spec for spec in specs if spec.state_bytes]
    tokens, page = _page(attention, states)
    notes = [f"pages of {tokens} tokens"]
    if flat:
        notes.append("chunked layers are kept whole: vLLM turns its hybrid allocation off for them by default")
    if states and attention:
        notes.append(f"a recurrent state of {max(s.state_bytes for s in states):,} bytes takes a page of {page:,}")
    if all(spec.limit is None and not spec.state_bytes for spec in specs):
        # One table of blocks serves all layers, each with pages of its own size.
        groups = tuple(
            _Group(spec, tuple(layers), len(layers), PAGE_TOKENS, PAGE_TOKENS * spec.token_bytes)
            for spec, layers in specs.items()
        )
        reserved = sum(group.page * group.rows for group in groups)
    else:
        size = _group_size([len(layers) for layers in specs.values()])
        groups = tuple(
            _Group(spec, tuple(layers), size * -(-len(layers) // size), _block_tokens(spec, tokens, page), page)
            for spec, layers in specs.items()
        )
        reserved = page * size
    notes.append(f"one null block of {reserved:,} bytes is reserved")
    return Allocation(groups, reserved, chunk, tuple(notes))


def vllm_cost(model: Model, context: int, batch: int, kv_dtype: str, chunk: int, tensor_parallel: int) -> KvCost:
    """The bill in vLLM's pages; arguments as in `kv_cost`."""
    plan = allocate(model, kv_dtype, chunk, tensor_parallel)
    one, reserved = plan.bytes_at(context)
    growing, lines = Fraction(0), []
    rates: dict[int, Fraction] = defaultdict(Fraction)
    bounds: dict[int, int] = defaultdict(int)
    for group in plan.groups:
        spec, pages = group.spec, plan.pages(group, context)
        grows = spec.limit is None and not spec.state_bytes
        rate = Fraction(group.page * group.rows, group.tokens) if grows else Fraction(0)
        growing += rate
        full = 0 if grows else plan.pages(group, (spec.limit or 0) + chunk) * group.page * group.rows
        for index in group.layers:
            rates[index] += rate / len(group.layers)
            bounds[index] += full // len(group.layers)
        padded = group.rows - len(group.layers)
        note = f"{pages} pages in each of {group.rows} layers" + (f", {padded} of them padding" if padded else "")
        lines.append(Item(_name(spec), pages * group.page * group.rows, plain(rate), note))
    kinds = {layer.index: layer.kind for layer in model.layers}
    layers = tuple(LayerCost(i, kinds[i], plain(rates[i]), bounds[i]) for i in sorted(rates))
    bounded = max(0, one - int(growing * context))
    total = batch * one + reserved
    return KvCost(
        "vllm",
        kv_dtype,
        context,
        batch,
        plain(growing),
        bounded,
        total,
        layers,
        tuple(lines),
        reserved,
        plan.notes,
    )


def _specs(layer: Layer, model: Model, kv_dtype: str, tensor_parallel: int, flat: bool) -> list[_Spec]:
    state = sum(
        bytes_of(memory.elements * _state_bits(memory, model), shard(memory, tensor_parallel))
        for memory in layer.memory
        if not memory.per_token
    )
    rows: dict[tuple[str, int | None], int] = {}
    for memory in layer.memory:
        if not memory.per_token:
            continue
        kind = (
            "index" if memory.name == "index keys" else memory.ring or ("latent" if memory.name == "latent" else "full")
        )
        size = bytes_of(
            memory.elements * bits_of(memory, model, kv_dtype), shard(memory, tensor_parallel) * memory.every
        )
        if kind == "index":  # kept in fp8 with a float32 scale per 128
            size = memory.elements + 4 * -(-memory.elements // 128)
        limit = None if flat else memory.limit
        kind = "full" if flat and memory.ring else kind
        rows[kind, limit] = rows.get((kind, limit), 0) + size
    found = [_Spec(kind, limit, size) for (kind, limit), size in rows.items()]
    return found + ([_Spec("state", None, 0, state)] if state else [])


def _state_bits(memory: Memory, model: Model) -> int:
    """vLLM keeps states in the model's dtype, unless the config names one."""
    own = PLAIN_BITS.get(model.dtype, 16)
    if memory.precision == "state":
        return state_bits(model.state_dtype) if model.state_dtype else own
    return 32 if memory.precision == "float32" else own


def _page(attention: list[_Spec], states: list[_Spec]) -> tuple[int, int]:
    """Tokens of the widest attention layer's page, and a page's bytes."""
    if not attention:
        return 1, max(spec.state_bytes for spec in states)
    widest = max(spec.token_bytes for spec in attention)
    tokens = PAGE_TOKENS
    if states:
        state = max(spec.state_bytes for spec in states)
        tokens = max(tokens, PAGE_TOKENS * -(-state // (PAGE_TOKENS * widest)))
    return tokens, tokens * widest


def _block_tokens(spec: _Spec, tokens: int, page: int) -> int:
    """Tokens in a page of this kind: a layer with narrower keys has more of them in the same bytes."""
    return max(tokens, page // spec.token_bytes) if spec.token_bytes else tokens


def _group_size(counts: list[int]) -> int:
    """Layers in a group: as many as the rarest kind has, or the most frequent one where that pads little."""
    least, most = min(counts), max(counts)
    return most if most < least * _PADDED_GROUP else least


def _name(spec: _Spec) -> str:
    return {
        "full": "keys and values",
        "latent": "latent",
        "index": "index keys",
        "window": f"window of {spec.limit}",
        "state": "states",
    }[spec.kind]
