"""One question to the planner, everything but the context fixed, and the largest answers that still fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from .bill import KvCost
from .gpus import Gpu
from .kv_cost import kv_cost, one_sequence
from .records import Model
from .tensor_parallel import weights_per_gpu
from .workspace import Workspace, workspace

#: A context beyond it is no bound that anyone meets.
LONGEST = 1 << 40


@dataclass(frozen=True)
class Question:
    """A model on some cards, with a batch, formats and an accounting."""

    model: Model
    gpu: Gpu
    gpus: int
    batch: int
    weights: str | None
    kv: str
    utilization: float
    accounting: str
    chunk: int

    @property
    def available(self) -> int:
        return int(self.gpu.memory_bytes * self.utilization)

    @cached_property
    def kept(self) -> Callable[[int], tuple[int, int]]:
        """Cache bytes of one sequence at a context, and bytes reserved once."""
        return one_sequence(
            self.model, kv_dtype=self.kv, accounting=self.accounting, chunk=self.chunk, tensor_parallel=self.gpus
        )

    @cached_property
    def weights_bytes(self) -> int:
        return weights_per_gpu(self.model, self.weights, self.gpus)

    def cache(self, context: int) -> KvCost:
        return kv_cost(
            self.model,
            context,
            batch=self.batch,
            kv_dtype=self.kv,
            accounting=self.accounting,
            chunk=self.chunk,
            tensor_parallel=self.gpus,
        )

    def cache_bytes(self, context: int, batch: int) -> int:
        one, reserved = self.kept(context)
        return batch * one + reserved

    def workspace(self, batch: int | None = None) -> Workspace:
        return workspace(self.model, chunk=self.chunk, batch=batch or self.batch, tensor_parallel=self.gpus)

    def required(self, context: int) -> int:
        return self.weights_bytes + self.cache_bytes(context, self.batch) + self.workspace().total_bytes

    def max_context(self, overhead: int) -> int | None:
        room = self.available - self.weights_bytes - overhead
        return _largest(lambda tokens: self.cache_bytes(tokens, self.batch) <= room, LONGEST)

    def max_batch(self, context: int) -> int | None:
        room = self.available - self.weights_bytes
        logits = self.workspace(1).logits_bytes
        fixed = self.workspace(1).activations_bytes
        return _largest(lambda batch: self.cache_bytes(context, batch) + fixed + batch * logits <= room, 1 << 30)


def _largest(fits: Callable[[int], bool], limit: int) -> int | None:
    """The largest number from 0 to `limit` that fits, by bisection; None if `limit` does."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        if high >= limit:
            return None
        low, high = high, min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
