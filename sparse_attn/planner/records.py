"""What a config says, as values: a model, its layers, and what each layer keeps, computes and weighs.

Costs are sums over these terms and nothing else: `Memory` is what a layer keeps of a sequence, `Scores` what it
computes per pair or token, `Weights` what it loads. The families (`families/`) only fill them in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

Kind = Literal["full", "sliding", "chunked", "latent", "indexed", "linear", "hybrid", "none"]
KINDS: tuple[Kind, ...] = ("full", "sliding", "chunked", "latent", "indexed", "linear", "hybrid", "none")

#: Whose number format a kept tensor has: the KV cache's, the model's own, always float32, or the recurrent state's
#: (`Model.state_dtype` if the config names one; else float32, and under vLLM the model's own).
Precision = Literal["kv", "model", "float32", "state"]

#: How many keys a query scores: all before it, a window, its chunk, the best `size`, every `size`-th summary.
Rule = Literal["full", "window", "chunk", "top", "summaries", "token"]


@dataclass(frozen=True)
class Memory:
    """Something that a layer keeps for one sequence.

    Attributes:
        name: "keys", "values", "latent", "index keys", "convolution state", "recurrent state", ...
        elements: Numbers in one entry.
        per_token: One entry a token; otherwise one for the sequence, whatever its length.
        limit: At most this many entries (a ring); None: it grows with the sequence.
        every: One entry for this many tokens (compressed keys).
        precision: Whose number format it has.
        heads: Into how many equal parts tensor parallelism can cut it; 1: every GPU holds all of it.
        ring: Why there is a limit: "window" (the last `limit` keys) or "chunk" (the keys of the current chunk).
        read: At most this many entries are read for a new token (top-k indexing); None: all that are kept.
        kernel: A convolution's width K, where `elements` holds the K - 1 inputs that the next token needs; 0: none.
        remainder: Tokens that wait for a block of so many to be full, `tokens % remainder` of them; 0: none.
        twice: transformers keeps it twice, as keys and as values, though they are the same.
    """

    name: str
    elements: int
    per_token: bool = True
    limit: int | None = None
    every: int = 1
    precision: Precision = "kv"
    heads: int = 1
    ring: Literal["window", "chunk"] | None = None
    read: int | None = None
    kernel: int = 0
    remainder: int = 0
    twice: bool = False

    @property
    def grows(self) -> bool:
        """Whether it grows with the sequence without end."""
        return self.per_token and self.limit is None

    def entries(self, tokens: int) -> int:
        """Entries kept after `tokens` tokens."""
        if not self.per_token:
            return 1
        if self.remainder:
            return tokens % self.remainder
        kept = tokens // self.every
        return kept if self.limit is None else min(kept, self.limit)


@dataclass(frozen=True)
class Scores:
    """Arithmetic of attention: `flops` floating-point operations for each (query, key) pair that `rule` keeps.

    `rule` "token": for each token, once (recurrences). `size` is the window, the chunk, the k of top-k, or how many
    tokens one summary stands for; `top` cuts the summaries to the best so many. `prefill_only`: a decode step does not
    compute it.
    """

    name: str
    flops: int
    rule: Rule = "full"
    size: int = 0
    top: int | None = None
    prefill_only: bool = False


@dataclass(frozen=True)
class Weights:
    """Parameters of one part: how many, and how many of them one token passes through.

    Attributes:
        part: "attention", "recurrence", "mlp", "experts", "shared experts", "router", "norms", "embedding", "head", ...
        total, active: Parameters. They differ for routed experts only.
        linear: Whether they are matrices of linear layers, which quantisers pack and tensor parallelism cuts.
        computes: Whether a token multiplies with them (an embedding's rows are looked up instead).
        uses: How often one token passes them (blocks that several layers share).
    """

    part: str
    total: int
    active: int
    linear: bool = True
    computes: bool = True
    uses: int = 1


@dataclass(frozen=True)
class Layer:
    """One layer of the stack.

    Attributes:
        index: Position from the bottom, from 0.
        kind: What it attends with. "latent": all earlier tokens through MLA's compressed keys; "indexed": the tokens
            that an indexer chooses; "linear": a state of fixed size; "hybrid": attention and a state side by side;
            "none": no mixing of tokens (an MLP or MoE block that the config counts as a layer).
        window: Keys that a query sees at most, its own included: the window's W, the chunk's size, the index's k.
            None: no bound.
        source: The config field that decided, e.g. ``layer_types[3]``.
        heads, kv_heads, head_dim, value_dim: Queries' heads, heads that are kept, and dims of a key and of a value
            (MLA: of the expanded ones; 1 KV head is kept). 0 where the layer has no attention.
        recurrence: "mamba", "mamba2", "gated delta net", "kimi delta attention", "lightning", "rg-lru", "rwkv",
            "short convolution"; None.
        rope: "rope", "partial rope", "none" (NoPE), "learned", "alibi".
        rope_theta: Base of the rotary embedding; None without one.
        mlp: "dense", "moe", "none".
        memory, scores, weights: Its terms.
        shares_with: Layer whose keys and values it reads instead of keeping its own; None.
        note: One sentence if something about this layer would mislead.
    """

    index: int
    kind: Kind
    source: str
    window: int | None = None
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    recurrence: str | None = None
    rope: str = "rope"
    rope_theta: float | None = None
    mlp: str = "dense"
    memory: tuple[Memory, ...] = ()
    scores: tuple[Scores, ...] = ()
    weights: tuple[Weights, ...] = ()
    shares_with: int | None = None
    note: str = ""

    @property
    def sees_everything(self) -> bool:
        """Whether a query can look at every earlier token exactly, in one hop."""
        attends = self.kind in ("full", "latent", "hybrid", "indexed")
        return attends and any(score.rule == "full" and score.name == "attention" for score in self.scores)


@dataclass(frozen=True)
class Rope:
    """Position encoding, as the config states it.

    Attributes:
        kind: "default", "linear", "dynamic", "yarn", "llama3", "longrope", "none", "learned", ...
        theta: Base frequency; None without rotary embedding.
        local_theta: Base of the sliding layers where it differs (Gemma 3); None.
        factor: Scaling factor; None without scaling.
        original_context: Positions before scaling (`original_max_position_embeddings`); None.
        partial: Share of the head dim that is rotated.
        source: Field that it was read from.
    """

    kind: str = "default"
    theta: float | None = None
    local_theta: float | None = None
    factor: float | None = None
    original_context: int | None = None
    partial: float = 1.0
    source: str = "rope_theta"


@dataclass(frozen=True)
class Inert:
    """A field that looks important and does nothing: name, value as text, one sentence, and where the rule stands."""

    field: str
    value: str
    reason: str
    source: str


@dataclass(frozen=True)
class Assumed:
    """A field that the config leaves out, and the default that was taken, with whose default it is."""

    field: str
    value: str
    source: str
    doubtful: bool = False


@dataclass(frozen=True)
class Quantization:
    """How the checkpoint is stored: the method, the weight dtype it amounts to, and the modules left alone.

    `bits`: bits of a packed weight with its scales, where the config's group size differs from the usual one; None.
    """

    method: str
    weights: str
    spared: tuple[str, ...] = ()
    bits: Fraction | None = None


@dataclass(frozen=True)
class Model:
    """A config, resolved.

    Attributes:
        model_type: As the config says it (the outer one, if nested).
        family: The `model_type` whose rule was applied (the text model's, if nested).
        layers: From the bottom up.
        hidden_size, vocab_size: Widths.
        intermediate_size: Widest MLP that one token passes through: what a prefill chunk has to hold.
        weights: Parts outside the layers: embedding, head, final norm, shared blocks.
        dtype: The checkpoint's number format, e.g. "bf16".
        quantization: How the checkpoint packs weights; None.
        advertised_context: `max_position_embeddings`, or the name that the family gives it; None if there is none.
        trained_context: Positions before RoPE scaling, where the config tells them; else the advertised ones.
        rope: Position encoding.
        causal: False for encoders (Longformer, BigBird), which keep no cache.
        state_dtype: What dtype the config asks for recurrent states (`mamba_ssm_dtype`, `mamba_ssm_cache_dtype`); None.
        inert, assumed: Fields that do nothing; fields that were missing.
        notes: Sentences about the model as a whole.
        stored_bytes: What the weight files hold, where an index, their headers or a GGUF file tell it; None.
    """

    model_type: str
    family: str
    layers: tuple[Layer, ...]
    hidden_size: int
    vocab_size: int
    intermediate_size: int
    weights: tuple[Weights, ...]
    dtype: str = "bf16"
    quantization: Quantization | None = None
    advertised_context: int | None = None
    trained_context: int | None = None
    rope: Rope = field(default_factory=Rope)
    causal: bool = True
    inert: tuple[Inert, ...] = ()
    assumed: tuple[Assumed, ...] = ()
    notes: tuple[str, ...] = ()
    state_dtype: str | None = None
    stored_bytes: int | None = None

    @property
    def all_weights(self) -> tuple[Weights, ...]:
        """Every part, those outside the layers first."""
        return self.weights + tuple(part for layer in self.layers for part in layer.weights)

    @property
    def parameters(self) -> Parameters:
        """Total and active parameters, and the total by part."""
        parts: dict[str, int] = {}
        for weights in self.all_weights:
            parts[weights.part] = parts.get(weights.part, 0) + weights.total
        return Parameters(
            sum(weights.total for weights in self.all_weights),
            sum(weights.active for weights in self.all_weights),
            parts,
        )


@dataclass(frozen=True)
class Parameters:
    """Parameter counts. A tied head counts once. `active` leaves out the experts that a token is not routed to."""

    total: int
    active: int
    parts: Mapping[str, int]
