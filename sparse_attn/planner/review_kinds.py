"""Rules about layers of some kinds: recurrent ones, chunks, keys that an index chooses, summaries, encoders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .finding import Finding, Reviewed
from .kv_cost import kv_cost

_STATE = (
    "Jelassi et al. 2024, arXiv:2402.01032; Arora et al. 2024, arXiv:2402.18668 (recall is bounded by the state's size)"
)


def recurrent_memory(r: Reviewed) -> Iterator[Finding]:
    """Recurrent layers: beside full ones, or alone."""
    seen = r.sight
    if not seen.recurrent:
        return
    kinds = ", ".join(sorted({str(r.model.layers[index].recurrence) for index in seen.recurrent}))
    state = _state_bytes(r)
    kept = f"a state of {state / 2**20:,.1f} MiB for each sequence, whatever its length"
    if seen.everything:
        beside = sum(index in seen.everything for index in seen.recurrent)
        where = "beside full attention in the same layer" if beside == len(seen.recurrent) else "between full layers"
        yield Finding(
            "recurrent-layers", "info",
            f"{len(seen.recurrent)} of {len(seen.mixing)} layers carry the past in {kept} ({kinds}), {where}; exact recall "
            f"goes through the {len(seen.everything)} that see everything",
            _STATE,
        )  # fmt: skip
        return
    sees = f" past the {seen.exact:,} tokens of its windows" if seen.exact else ""
    yield Finding(
        "recurrent-only", "warning",
        f"no layer sees everything: whatever is recalled{sees} has to fit {kept} ({kinds}, {len(seen.recurrent)} layers)",
        _STATE,
    )  # fmt: skip


def chunk_borders(r: Reviewed) -> Iterator[Finding]:
    """Chunks: a token after a border sees almost nothing in those layers."""
    sizes = Counter(
        r.model.layers[index].window for index in r.sight.bounded if r.model.layers[index].kind == "chunked"
    )
    for size, count in sizes.items():
        yield Finding(
            "chunk-borders",
            "info",
            f"{count} of {len(r.sight.mixing)} layers attend within chunks of {size:,} tokens: at position {size:,} a query "
            "sees only itself there, however near the facts are, and only other layers look back over the border",
            "field attention_chunk_size; transformers, masking_utils.py (chunked masks)",
        )


def chosen_keys(r: Reviewed) -> Iterator[Finding]:
    """Sparse layers that an index feeds: the best k keys of all."""
    chosen = [layer for index in r.sight.chosen if (layer := r.model.layers[index]).window is not None]
    if not chosen:
        return
    most = max(layer.window or 0 for layer in chosen)
    share = f", {most / r.context:.1%} of {r.context:,}" if r.context and most < r.context else ""
    yield Finding(
        "chosen-keys",
        "info",
        f"{len(chosen)} of {len(r.sight.mixing)} layers reach any distance, but a query reads at most {most:,} keys{share}: a "
        "fact is seen if the index ranks it among them",
        "DeepSeek-V3.2 report, arXiv:2512.02556 (sparse attention through an index); field index_topk",
    )


def summaries(r: Reviewed) -> Iterator[Finding]:
    """Layers that see the distance as summaries of so many tokens each, all of them or the best few."""
    for layer in r.model.layers:
        for score in layer.scores:
            if score.name != "summaries" or layer.index not in r.sight.chosen:
                continue
            same = [other for other in r.model.layers if score in other.scores]
            if same[0].index != layer.index:  # said of the first of its kind
                continue
            best = f", of which a query reads the best {score.top:,}" if score.top else ""
            yield Finding(
                "distance-in-summaries",
                "info",
                f"{len(same)} of {len(r.sight.mixing)} layers see the distance as one summary for every {score.size:,} tokens"
                f"{best}: what a summary leaves out cannot be recalled there",
                f"field {layer.source.partition('[')[0]}, as transformers' class for {r.model.family} reads it",
            )


def encoder(r: Reviewed) -> Iterator[Finding]:
    """Bidirectional models."""
    if r.model.causal:
        return
    local = [r.model.layers[index] for index in r.sight.bounded]
    words = f"; {len(local)} layers see {local[0].window:,} tokens around a token" if local and local[0].window else ""
    beside = f" ({local[0].note})" if local and local[0].note else ""
    yield Finding(
        "encoder",
        "info",
        f"an encoder: tokens see to both sides, and no KV cache is kept between calls{words}{beside}",
        "Beltagy et al. 2020, arXiv:2004.05150; Zaheer et al. 2020, arXiv:2007.14062",
    )


KIND_RULES = (recurrent_memory, chunk_borders, chosen_keys, summaries, encoder)


def _state_bytes(r: Reviewed) -> int:
    """Bytes of all recurrent states of one sequence, 16-bit cache, with their convolutions."""
    cost = kv_cost(r.model, 1)
    names = {memory.name for layer in r.model.layers for memory in layer.memory if not memory.per_token}
    return sum(item.bytes for item in cost.items if item.name in names)
