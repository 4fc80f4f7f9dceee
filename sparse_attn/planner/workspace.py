"""Memory that a prefill chunk needs beside weights and cache: activations, and the logits of what is sampled."""

from __future__ import annotations

from dataclasses import dataclass

from .bill import check_count
from .records import Model


@dataclass(frozen=True)
class Workspace:
    """Bytes of a step's temporary tensors.

    Attributes:
        activations_bytes: chunk x (2 x hidden + widest phase of a layer) x 2 bytes.
        logits_bytes: rows x vocabulary x (2 + 4) bytes: in 16 bits, and the float32 copy that sampling makes.
        chunk, rows: Tokens of the step, and rows of logits.
    """

    activations_bytes: int
    logits_bytes: int
    chunk: int
    rows: int

    @property
    def total_bytes(self) -> int:
        """Both."""
        return self.activations_bytes + self.logits_bytes


def workspace(model: Model, *, chunk: int = 2048, batch: int = 1, tensor_parallel: int = 1) -> Workspace:
    """The temporary tensors of a step over `chunk` tokens that samples one token for each of `batch` sequences.

    The residual stream and its normed copy live through a layer; beside them either the attention phase (queries, keys,
    values and output) or the MLP phase (gate, up and their product, for all experts that a token passes) stands. Flash
    attention is assumed: no matrix of scores. An estimate: engines reuse buffers more or less well.

    Raises:
        ValueError: a chunk or batch that is no positive number.
    """
    check_count("chunk", chunk)
    check_count("batch", batch)
    attention = max(
        (2 * layer.heads * max(layer.head_dim, layer.value_dim) + 2 * layer.kv_heads * layer.head_dim)
        for layer in model.layers
    )
    phase = -(-max(attention, 3 * model.intermediate_size) // tensor_parallel)
    rows = batch
    logits = rows * -(-model.vocab_size // tensor_parallel) * (2 + 4)
    return Workspace(chunk * (2 * model.hidden_size + phase) * 2, logits, chunk, rows)
