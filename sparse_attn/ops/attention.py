"""`attention`: the one public call, over whichever implementation serves the device."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..patterns import Chunked, Full, Pattern, TopBlocks, Window
from .boundaries import Lengths
from .check_attention import Call, check_call
from .implementations import implementation_for


def attention(
    q: Float[Tensor, "*B T Hq D"],
    k: Float[Tensor, "*B S Hkv D"],
    v: Float[Tensor, "*B S Hkv D"],
    pattern: Pattern | Sequence[Pattern],
    *,
    causal: bool = True,
    scale: float | None = None,
    cu_seqlens_q: Lengths | None = None,
    cu_seqlens_k: Lengths | None = None,
    extra_k: Float[Tensor, "*B N R Hkv D"] | None = None,
    extra_v: Float[Tensor, "*B N R Hkv D"] | None = None,
    selected: Int[Tensor, "*B tiles H K"] | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> Float[Tensor, "*B T Hq D"] | tuple[Float[Tensor, "*B T Hq D"], Float[Tensor, "*B T Hq"]]:
    """Softmax attention over the keys that a pattern keeps.

    out[b,t,h] = softmax(scale * q[b,t,h] @ k[b,J,g].T) @ v[b,J,g]
    g = h // (Hq // Hkv);  J = the keys that `pattern` keeps for position S - T + t

    Args:
        q: Queries ``[B, T, Hq, D]``, the last T of S positions; float16, bfloat16, float32 or float64. Packed
            documents: ``[T, Hq, D]``, with `cu_seqlens_q`.
        k, v: Keys and values ``[B, S, Hkv, D]`` (packed ``[S, Hkv, D]``); dtype and device of q.
        pattern: What each query may see, e.g. ``Window(2048) | Sinks(4)``; or a sequence of Hkv patterns, one per KV
            head. A `Global` with one list of positions per example must name B examples (packed: the documents).
        causal: Cut every term to keys at or before the query.
        scale: Logit multiplier; ``D ** -0.5`` if None.
        cu_seqlens_q, cu_seqlens_k: Document boundaries ``[documents + 1]``, from 0 to T and from 0 to S (default: those
            of the queries), as a list or an integer tensor. Queries see their own document only, and positions count
            within it. A CUDA tensor is read once, and again when PyTorch changes it (one made in inference mode: at each
            call); choosing blocks, hashing and anchors read it the same way. A CUDA graph keeps the boundaries that it was
            captured with.
        extra_k, extra_v: The summary keys of an `Anchors` term, ``[B, ceil(S / block), R, Hkv, D]`` (packed: the
            documents' rows one after the other, without B). A query at position i sees the R keys of row i // block.
        selected: The blocks that a `TopBlocks` term chooses, integers ``[B, N, H, K]``, K <= k (packed: the documents' tiles
            one after the other, without B). The query at position i reads row i // rows, counted from the first query's
            row, and a row names block numbers (position // block) of the query's document; negative, or beyond its end:
            no block. H is Hkv (the heads of a group choose together) or Hq. Order means nothing; a block named twice
            counts twice. None: `select_blocks` chooses, without training.
        return_lse: Also return the natural-log normaliser of the scaled logits.
        implementation: "cpu" (gathers kept blocks; CPU tensors), "triton" (fused kernels for CUDA tensors, float16,
            bfloat16 or float32, D to 256), "hopper" (compute capability 9.0, float16 or bfloat16, D 64, 128 or 256, windows,
            chunks and full, with sinks, strided and anchors beside them), "reference" (dense mask, O(T x S) memory, any
            device), or None for the one that serves q's device and the call. On a GPU, a float16 or bfloat16 call of up to
            2,048 keys that a term keeps whole goes to PyTorch's own dense kernels, unless the LSE, a compiled region, packing
            or deterministic algorithms are asked for: their gradients need not repeat to the bit, and keys of grouped heads
            are repeated in memory.
            A named one never falls back to another.

    Returns:
        The output in q's dtype, accumulated in float32 (float64 inputs: in float64). With `return_lse` also the LSE
        ``[B, T, Hq]`` in float32 (float64 inputs: float64). Where J is empty the output is 0, the LSE -inf, and no
        gradient flows.

    Raises:
        ValueError: shapes, dtypes or devices disagree, T > S, Hq % Hkv != 0, boundaries that do not fit, a pattern with
            `Anchors` without extra keys (or the reverse), chosen blocks that do not fit, or an unknown implementation.
        NotImplementedError: the implementation does not serve q's device, dtype or head dim, or the pattern.

    A key of a chosen block that a static term of the pattern names counts once, as that term's. Static and chosen keys are
    read in two passes, merged by their LSE.
    Gradients flow to q, k, v, extra_k and extra_v, from the output and from the LSE. Keys that a query does not see
    should be finite: 0 * inf is NaN, except across documents and batch examples, which never meet.
    Cost: 4 * Hq * D * pairs FLOPs forward, 2.5 times that backward; memory linear in T + S ("cpu").
    Under `torch.compile` a call through static terms and anchors is one operator; terms that choose (`TopBlocks`, `CoverBlocks`,
    `VerticalSlash`, `Hashed`) break the graph on a CPU: leave `fullgraph` off there. Make patterns outside the compiled function.
    Source: Child et al. 2019, arXiv:1904.10509 (patterns); Dao et al. 2022, arXiv:2205.14135 (tiling).

    >>> out = attention(q, k, v, Window(2048) | Sinks(4))
    >>> out.shape == q.shape
    True
    """
    if implementation in ("triton", "hopper") or (implementation is None and isinstance(q, Tensor) and q.is_cuda):
        q, k, v, extra_k, extra_v = _autocast(q, k, v, extra_k, extra_v)
    call = check_call(q, k, v, pattern, causal, scale, cu_seqlens_q, cu_seqlens_k, extra_k, extra_v, selected)
    if implementation is None and not return_lse and _suits_dense(call):
        return _dense(call)
    run = implementation_for(implementation, q)
    if call.choice is not None and call.selected is None:
        call = replace(call, selected=_select(call))
    if call.examples is None or call.packed:
        out, lse = run(call)
    else:
        parts = [run(call.example(index)) for index in range(call.examples)]
        out, lse = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if call.packed:
        out, lse = out[0], lse[0]
    return (out, lse) if return_lse else out


def _autocast(*tensors: Any) -> Sequence[Any]:
    """The tensors in autocast's dtype, as PyTorch's own attention takes them: a model's q may be wider than its v."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    narrowed = (torch.float16, torch.bfloat16, torch.float32)
    return [x.to(dtype) if isinstance(x, Tensor) and x.dtype in narrowed else x for x in tensors]


def _select(call: Call) -> Tensor:
    """Blocks chosen from the queries and keys at hand, without training."""
    from .select_blocks import choose_blocks

    assert call.choice is not None
    if call.choice.term.rows > 1 and torch.is_grad_enabled() and any(x.requires_grad for x in (call.q, call.k, call.v)):
        raise NotImplementedError(
            f"attention: {call.choice.term!r} chooses with later queries of its tile, which training must not read: use "
            "rows=1, or give `selected`"
        )
    plain = isinstance(call.choice.term, TopBlocks) and call.scale > 0  # the size of the scale bears on no order
    queries = call.q if plain else call.q * call.scale
    return choose_blocks(queries, call.k, call.patterns, causal=call.causal, bounds=call.bounds)


def _suits_dense(call: Call) -> bool:
    """Whether PyTorch's dense kernels serve a call as well: short, on a GPU, and nothing that the pattern hides.

    At such lengths a launch is what counts, and theirs is lighter. Inside a compiled region lengths are unknown.
    """
    if not call.q.is_cuda or torch.compiler.is_compiling() or call.packed or call.extra_k is not None:
        return False
    n_queries, n_keys = call.q.shape[1], call.k.shape[1]
    if n_keys > _SHORT or (call.causal and n_queries != n_keys) or call.scale <= 0.0:
        return False
    if call.q.dtype not in (torch.float16, torch.bfloat16) or call.q.shape[-1] > 256:
        return False
    if torch.are_deterministic_algorithms_enabled():  # theirs add up a gradient in any order
        return False
    return call.examples is None and all(_keeps_all(pattern, n_keys, call.causal) for pattern in call.patterns)


@lru_cache(maxsize=256)
def _keeps_all(pattern: Pattern, n: int, causal: bool) -> bool:
    """Whether one of the terms alone keeps every pair: told without counting."""
    return any(
        isinstance(term, Full)
        or (isinstance(term, Window) and term.left >= n and (causal or term.ahead >= n - 1))
        or (isinstance(term, Chunked) and term.size >= n)
        for term in pattern.terms
    )


def _dense(call: Call) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))
    grouped = q.shape[1] != k.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=call.causal, scale=call.scale, enable_gqa=grouped
    )
    return out.transpose(1, 2)


_SHORT = 2048  # keys; from here on the fused kernels are as fast where they do all the work (benchmarks/NOTES.md)
