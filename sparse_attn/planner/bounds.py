"""How fast at best: bytes over bandwidth, and FLOPs over the dense rate."""

from __future__ import annotations

from dataclasses import dataclass

from .flops import Flops, Traffic, decode_bytes, decode_flops, prefill_flops
from .question import Question
from .weights import weights_cost


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on time, not predictions: no kernel is faster, real ones are slower.

    Attributes:
        decode_seconds: A decode step of the batch: bytes read over bandwidth, or FLOPs over rate, whichever is longer.
        decode_tokens_per_second: For one sequence, and for the batch together.
        prefill_seconds: Reading one prompt of `context` tokens: FLOPs over the dense rate.
        traffic, decode, prefill: What was divided: bytes that one GPU reads, FLOPs of one sequence.
        rate: Dense FLOP a second of all GPUs that the bound took, with `rate_name`.
    """

    decode_seconds: float
    decode_tokens_per_second: float
    batch_tokens_per_second: float
    prefill_seconds: float
    traffic: Traffic
    decode: Flops
    prefill: Flops
    rate: float
    rate_name: str


def time_bounds(asked: Question, context: int) -> Bounds:
    """The bounds of a question at a context."""
    model, gpu, batch = asked.model, asked.gpu, asked.batch
    prefill = prefill_flops(model, context)
    decode = decode_flops(model, context)
    traffic = decode_bytes(
        model, context, batch=batch, kv_dtype=asked.kv, weights=asked.weights, tensor_parallel=asked.gpus
    )
    fp8 = weights_cost(model, asked.weights).dtype == "fp8" and gpu.fp8 is not None
    one, name = (gpu.fp8, "fp8") if fp8 and gpu.fp8 else (gpu.bf16, "bf16" if gpu.has_bf16 else "fp16")
    rate = one * asked.gpus
    seconds = max(traffic.total / gpu.bandwidth, batch * decode.total / rate)
    return Bounds(seconds, 1 / seconds, batch / seconds, prefill.total / rate, traffic, decode, prefill, rate, name)
