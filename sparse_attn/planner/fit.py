"""Does it fit: weights, cache and workspace held against a GPU; how far, how many, and how fast at best."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .bill import KvCost, check_count
from .bounds import Bounds, time_bounds
from .gpus import Gpu
from .question import LONGEST, Question
from .records import Model
from .remedies import Remedy, remedies
from .tensor_parallel import allowed_splits, why_not
from .weights import weights_cost
from .workspace import Workspace


@dataclass(frozen=True)
class Fit:
    """The answer. All bytes are per GPU.

    Attributes:
        fits: Whether required_bytes <= available_bytes.
        required_bytes: weights + cache + workspace.
        available_bytes: memory x utilization.
        weights_bytes, kv, workspace: The three parts; `kv.total_bytes` is the batch's.
        weights_and_kv_bytes: Without workspace, as most published figures count.
        context, batch: As asked; the context is the advertised one if none was asked.
        max_context: Largest context at this batch; None: no bound; 0: not even one token.
        max_context_before_overhead: The same without workspace.
        max_batch: Largest batch at this context; 0: not even one sequence.
        remedies: What would make it fit, best first; () if it fits.
        bounds: How fast at best.
        notes: Sentences that explain a difference or a limit.
    """

    model_type: str
    gpu: Gpu
    gpus: int
    context: int
    batch: int
    weights_dtype: str
    kv_dtype: str
    accounting: str
    utilization: float
    fits: bool
    required_bytes: int
    available_bytes: int
    weights_bytes: int
    kv: KvCost
    workspace: Workspace
    max_context: int | None
    max_context_before_overhead: int | None
    max_batch: int | None
    remedies: tuple[Remedy, ...]
    bounds: Bounds
    notes: tuple[str, ...] = ()

    @property
    def weights_and_kv_bytes(self) -> int:
        """Weights and cache without workspace."""
        return self.weights_bytes + self.kv.total_bytes


def fit(
    model: Model,
    gpu: Gpu,
    *,
    gpus: int = 1,
    context: int | None = None,
    batch: int = 1,
    weights: str | None = None,
    kv: str = "bf16",
    utilization: float = 0.9,
    accounting: str = "exact",
    chunk: int = 2048,
) -> Fit:
    """Hold a model against one or more of a GPU.

    required = weights / gpus + batch x cache(context) + workspace(chunk) <= memory x utilization, on each GPU.

    Args:
        model: From `describe`.
        gpu: From `find_gpu`; `with_memory` gives it another capacity.
        gpus: Cards that share the model by its heads (tensor parallelism).
        context: Tokens of each sequence; None: the advertised context (an error if the config names none).
        batch: Sequences at the same time.
        weights: Weight format; None: as the checkpoint stores them.
        kv: KV cache format.
        utilization: Share of the memory that may be used, above 0 and at most 1.
        accounting: "exact", "transformers" or "vllm".
        chunk: Tokens of a prefill step.

    Raises:
        ValueError: a number out of range, an unknown format, or a number of GPUs that the heads do not allow.
    """
    if context is None:
        if model.advertised_context is None:
            raise ValueError("context is missing: the config names no max_position_embeddings, so say how many tokens")
        context = model.advertised_context
    check_count("context", context, most=LONGEST)
    check_count("batch", batch, most=1 << 30)
    check_count("gpus", gpus, most=1024)
    if isinstance(utilization, bool) or not isinstance(utilization, int | float) or not 0 < utilization <= 1:
        raise ValueError(f"utilization must be above 0 and at most 1, got {utilization!r}")
    if reason := why_not(model, gpus):
        raise ValueError(
            f"gpus {gpus} cannot share this model by its heads: {reason}; allowed: "
            f"{', '.join(map(str, allowed_splits(model, 16)))}"
        )
    asked = Question(model, gpu, gpus, batch, weights, kv, float(utilization), accounting, chunk)
    cost = asked.cache(context)
    room = asked.workspace()
    held = asked.weights_bytes
    required = held + cost.total_bytes + room.total_bytes
    found = Fit(
        model_type=model.model_type,
        gpu=gpu,
        gpus=gpus,
        context=context,
        batch=batch,
        weights_dtype=weights_cost(model, weights).dtype,
        kv_dtype=kv,
        accounting=accounting,
        utilization=float(utilization),
        fits=required <= asked.available,
        required_bytes=required,
        available_bytes=asked.available,
        weights_bytes=held,
        kv=cost,
        workspace=room,
        max_context=asked.max_context(room.total_bytes),
        max_context_before_overhead=asked.max_context(0),
        max_batch=asked.max_batch(context),
        remedies=(),
        bounds=time_bounds(asked, context),
        notes=(),
    )
    found = replace(found, notes=tuple(_notes(found, model, weights)))
    if found.fits:
        return found
    return replace(found, remedies=remedies(asked, context))


def _notes(found: Fit, model: Model, weights: str | None) -> list[str]:
    gpu, gib, gb = found.gpu, 1024**3, 10**9
    notes = [
        f"of the card's {gpu.memory_bytes / gb:.1f} GB ({gpu.memory_bytes / gib:.1f} GiB), {found.available_bytes / gb:.1f} GB "
        f"may be used (utilization {found.utilization:g}); a prefill step of {found.workspace.chunk:,} tokens takes "
        f"{found.workspace.total_bytes / gb:.2f} GB of it"
    ]
    before = found.max_context_before_overhead
    if before is not None and before != found.max_context:
        notes.append(f"without that workspace {before:,} tokens would fit, with it {found.max_context or 0:,}")
    if not model.causal:
        notes.append("an encoder keeps no cache between calls: only weights and workspace count")
    if model.advertised_context is not None and found.context > model.advertised_context:
        notes.append(f"{found.context:,} tokens are beyond the advertised {model.advertised_context:,}")
    if not gpu.has_bf16:
        notes.append(f"{gpu.name} has no bfloat16 units: the rate is float16's")
    if not weights_cost(model, weights).exact:
        notes.append(f"{weights}: llama.cpp chooses a type for each tensor, so the size is right within some per cent")
    return notes
