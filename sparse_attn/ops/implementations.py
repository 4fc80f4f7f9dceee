"""What carries a checked call out: the implementations by name, which one serves a device, and how their passes join."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..patterns.documents import split_documents
from .check_attention import Call
from .merge import merge

Run = Callable[[Call], tuple[Tensor, Tensor]]


def implementation_for(name: str | None, q: Tensor) -> Run:
    """The implementation of that name, or the one that serves q's device.

    Raises:
        ValueError: there is no such name.
        NotImplementedError: it does not serve the device.
    """
    if name is None:
        if q.device.type not in _DEFAULTS:
            raise NotImplementedError(
                f"attention: no implementation for {q.device.type} tensors: move them to the CPU or to a CUDA device, or "
                "pass implementation='reference' (dense, for checking)"
            )
        return _run(*_DEFAULTS[q.device.type])
    if not isinstance(name, str) or name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be None or one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    if name == "cpu" and q.device.type != "cpu":
        raise NotImplementedError(f"implementation 'cpu' takes CPU tensors, got q on {q.device}; use 'reference'")
    return _run(*IMPLEMENTATIONS[name])


def _run(static: Run, choosing: Run, hashing: Run | None = None) -> Run:
    """For patterns that content does not change, for chosen blocks, for hashed keys: the one that a call needs."""
    hashing = _merged(static, _hashed) if hashing is None else hashing
    return lambda call: hashing(call) if call.hashes else static(call) if call.choice is None else choosing(call)


def _hashed(call: Call) -> tuple[Tensor, Tensor]:
    """Plain torch on either device: no implementation of its own is named."""
    from .hashed import hashed_attention

    bounds = call.bounds
    return hashed_attention(
        call.q, call.k, call.v, call.patterns, scale=call.scale, cu_seqlens_q=bounds[0], cu_seqlens_k=bounds[1]
    )


def _reference_hashed(call: Call) -> tuple[Tensor, Tensor]:
    from ..reference import hashed_attention
    from .hashed import hash_buckets, split_hashed

    if call.extra_k is not None:
        raise NotImplementedError("implementation 'reference' has no Hashed beside Anchors; use 'cpu' or 'triton'")
    rest = split_hashed(call.patterns[0])
    assert rest is not None
    return hashed_attention(
        call.q,
        call.k,
        call.v,
        call.patterns,
        *(hash_buckets(x, rest.term, call.k.shape[2]) for x in (call.q, call.k)),
        chunk=rest.term.chunk,
        scale=call.scale,
        limit=rest.limit,
        cu_seqlens_q=call.bounds[0],
        cu_seqlens_k=call.bounds[1],
    )


def _reference(call: Call) -> tuple[Tensor, Tensor]:
    from ..reference import masked_attention

    bounds = call.bounds
    split_documents(call.q.shape[1], call.k.shape[1], *bounds)  # boundaries on a device have not been looked at yet
    return masked_attention(
        call.q,
        call.k,
        call.v,
        call.patterns,
        causal=call.causal,
        scale=call.scale,
        cu_seqlens_q=bounds[0],
        cu_seqlens_k=bounds[1],
        extra_k=call.extra_k,
        extra_v=call.extra_v,
    )


def _reference_selected(call: Call) -> tuple[Tensor, Tensor]:
    from ..reference import selected_attention

    bounds = call.bounds
    split_documents(call.q.shape[1], call.k.shape[1], *bounds)
    assert call.selected is not None
    return selected_attention(
        call.q,
        call.k,
        call.v,
        call.patterns,
        call.selected,
        causal=call.causal,
        scale=call.scale,
        cu_seqlens_q=bounds[0],
        cu_seqlens_k=bounds[1],
        extra_k=call.extra_k,
        extra_v=call.extra_v,
    )


def _cpu(call: Call) -> tuple[Tensor, Tensor]:
    from ..cpu import assignments, tile_attention

    if torch.compiler.is_compiling():
        from ..cpu.registration import cpu_attention

        extra = [None if x is None else x.flatten(1, 2) for x in (call.extra_k, call.extra_v)]
        text = "\n".join([pattern.text for pattern in call.patterns])
        found = cpu_attention(call.q, call.k, call.v, *extra, *_boundary_tensors(call), text, call.causal, call.scale)
        return found[0], found[1]
    return tile_attention(
        call.q,
        call.k,
        call.v,
        assignments(call.patterns, call.q.shape[1], call.k.shape[1], call.causal, *call.bounds),
        scale=call.scale,
        extra_k=None if call.extra_k is None else call.extra_k.flatten(1, 2),
        extra_v=None if call.extra_v is None else call.extra_v.flatten(1, 2),
    )


def _cpu_selected(call: Call) -> tuple[Tensor, Tensor]:
    from ..cpu import selected_attention

    assert call.selected is not None
    return selected_attention(
        call.q,
        call.k,
        call.v,
        call.patterns,
        call.selected,
        causal=call.causal,
        scale=call.scale,
        cu_seqlens_q=call.bounds[0],
        cu_seqlens_k=call.bounds[1],
    )


def _merged(static: Run, chosen: Run) -> Run:
    """Attention in two passes: over what the pattern keeps by itself, and over the chosen keys that it does not name."""

    def run(call: Call) -> tuple[Tensor, Tensor]:
        rest = call.static()
        if rest is None:
            return chosen(call)
        return merge(*zip(static(rest), chosen(call), strict=True))

    return run


def _kernels(call: Call, kernels: str) -> tuple[Tensor, Tensor]:
    """The GPU kernels: "triton", "hopper", or "any" of them."""
    try:
        from ..kernels.attention import fused_attention
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise NotImplementedError(
            f"implementation {'triton' if kernels == 'any' else kernels!r} needs Triton, which is not installed; use 'reference'"
        ) from None

    bounds = _boundary_tensors(call)
    return fused_attention(
        call.q,
        call.k,
        call.v,
        "\n".join([pattern.text for pattern in call.patterns]),
        causal=call.causal,
        scale=call.scale,
        cu_seqlens_q=bounds[0],
        cu_seqlens_k=bounds[1],
        extra_k=call.extra_k,
        extra_v=call.extra_v,
        kernels=kernels,
    )


def _triton_selected(call: Call) -> tuple[Tensor, Tensor]:
    try:
        from ..kernels.selected import fused_selected_attention, fused_union_attention
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise NotImplementedError(
            "implementation 'triton' needs Triton, which is not installed; use 'reference'"
        ) from None

    assert call.selected is not None
    bounds = _boundary_tensors(call)
    alone = call.static() is None
    run: Callable[..., tuple[Tensor, Tensor]] = fused_selected_attention if alone else fused_union_attention
    return run(
        call.q,
        call.k,
        call.v,
        call.selected,
        "\n".join([pattern.text for pattern in call.patterns]),
        causal=call.causal,
        scale=call.scale,
        cu_seqlens_q=bounds[0],
        cu_seqlens_k=bounds[1],
        **({} if alone else {"extra_k": call.extra_k, "extra_v": call.extra_v}),
    )


def _hopper_selected(call: Call) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("implementation 'hopper' has no kernels for chosen blocks; use 'triton'")


def _refuse_hashed(call: Call) -> tuple[Tensor, Tensor]:
    raise NotImplementedError(
        "implementations 'triton' and 'hopper' have no kernels for Hashed; None runs it in plain PyTorch on any device"
    )


def _boundary_tensors(call: Call) -> list[Tensor | None]:
    return [
        torch.tensor(lengths, device="cpu") if isinstance(lengths, tuple) else lengths
        for lengths in (call.cu_seqlens_q, call.cu_seqlens_k)
    ]


# For each name: through a pattern that content does not change, through one with chosen blocks, and with hashed keys.
IMPLEMENTATIONS: dict[str, tuple[Run, ...]] = {
    "cpu": (_cpu, _merged(_cpu, _cpu_selected)),
    "reference": (_reference, _reference_selected, _reference_hashed),
    "triton": (partial(_kernels, kernels="triton"), _triton_selected, _refuse_hashed),
    "hopper": (partial(_kernels, kernels="hopper"), _hopper_selected, _refuse_hashed),
}
_DEFAULTS: dict[str, tuple[Run, ...]] = {
    "cpu": IMPLEMENTATIONS["cpu"],
    "cuda": (partial(_kernels, kernels="any"), _triton_selected),
}
