"""Backward kernel for extra keys: one block's summary keys stay, the queries that stand in the block walk past."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backward_keys import key_gradient_step
from .blocks import document_bounds, head_pointer, load_rows, load_tile
from .geometry import Geometry
from .launch import Gradients, Inputs, lengths_of
from .tiles import LOG2_E, Capability, backward_extra_tile, can_use_tma, padded_head_dim, precision, tile_source


@triton.jit
def row_numbers(
    lse2, delta, step, steps, batch, kv_head, begin, end, shift, stride_row, n_kv_heads,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """LSE and delta of a step's queries; behind the last step nothing is read."""
    whole = tl.maximum(steps, 1)
    head = kv_head * GROUP + step // whole
    x = begin + step % whole * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (x < end) & (step < steps * GROUP)
    at = (batch.to(tl.int64) * n_kv_heads * GROUP + head) * stride_row + x + shift
    return tl.load(lse2 + at, mask=inside, other=float("inf")), tl.load(delta + at, mask=inside, other=0.0)


@triton.jit(do_not_specialize=lengths_of("backward_extra"))
def backward_extra_kernel(
    q, extra_k, extra_v, d_out, lse2, delta, d_extra_k, d_extra_v, blocks, documents,
    stride_qb, stride_qt, stride_qh, stride_eb, stride_et, stride_eh, stride_db, stride_dt, stride_dh,
    stride_gb, stride_gt, stride_gh, stride_row,
    n_keys, offset, n_extra, n_kv_heads, scale, scale2, extra_block,
    EXTRA: tl.constexpr, PACKED: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    part: tl.constexpr = (EXTRA + BLOCK_N - 1) // BLOCK_N
    kv_head = program % n_kv_heads
    batch = program // n_kv_heads // (n_extra * part)
    tile = program // n_kv_heads % (n_extra * part)
    row = tile // part  # of extra keys
    q_start, own_keys, first_query, number = 0, n_keys, offset, row
    if PACKED:
        document = tl.load(blocks + row)
        q_start, _, own_keys, first_query = document_bounds(documents, document)
        number = row - tl.load(documents + 7 * document + 4)
    shift = q_start - first_query
    r = tile % part * BLOCK_N + tl.arange(0, BLOCK_N)
    here = r < EXTRA
    tokens = row * EXTRA + r
    k_tile = load_rows(
        head_pointer(extra_k, batch, kv_head, stride_eb, stride_eh, False), tokens, here, stride_et, D, BLOCK_D
    )  # fmt: skip
    v_tile = load_rows(
        head_pointer(extra_v, batch, kv_head, stride_eb, stride_eh, False), tokens, here, stride_et, D, BLOCK_D
    )  # fmt: skip
    dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    begin = tl.maximum(number * extra_block, first_query)
    end = tl.minimum(number * extra_block + extra_block, own_keys)
    # One loop over heads and their queries, so that the next queries are on their way whichever head they belong to; so
    # are their numbers, for which Triton's pipeline does nothing.
    steps = tl.maximum(end - begin + BLOCK_M - 1, 0) // BLOCK_M
    lse_row, delta_row = row_numbers(
        lse2, delta, 0, steps, batch, kv_head, begin, end, shift, stride_row, n_kv_heads, GROUP, BLOCK_M
    )
    for step in tl.range(0, steps * GROUP):
        head = kv_head * GROUP + step // steps
        start = begin + step % steps * BLOCK_M
        q_tile = load_tile(
            head_pointer(q, batch, head, stride_qb, stride_qh, USE_TMA), batch, head, 0, start, first_query, own_keys,
            shift, 1, stride_qt, D, BLOCK_M, BLOCK_D, USE_TMA, PACKED, False,
        )  # fmt: skip
        d_tile = load_tile(
            head_pointer(d_out, batch, head, stride_db, stride_dh, USE_TMA), batch, head, 0, start, first_query, own_keys,
            shift, 1, stride_dt, D, BLOCK_M, BLOCK_D, USE_TMA, PACKED, False,
        )  # fmt: skip
        later = row_numbers(
            lse2, delta, step + 1, steps, batch, kv_head, begin, end, shift, stride_row, n_kv_heads, GROUP, BLOCK_M
        )  # fmt: skip
        dk_acc, dv_acc = key_gradient_step(
            k_tile, v_tile, q_tile, d_tile, lse_row, delta_row, True, dk_acc, dv_acc, scale2, False, PRECISION
        )
        lse_row, delta_row = later

    d = tl.arange(0, BLOCK_D)
    stored = here[:, None] & (d < D)[None, :]
    at = (tokens.to(tl.int64) * stride_gt)[:, None] + d[None, :]
    dk_at = head_pointer(d_extra_k, batch, kv_head, stride_gb, stride_gh, False) + at
    dv_at = head_pointer(d_extra_v, batch, kv_head, stride_gb, stride_gh, False) + at
    tl.store(dk_at, (dk_acc * scale).to(d_extra_k.dtype.element_ty), mask=stored)
    tl.store(dv_at, dv_acc.to(d_extra_v.dtype.element_ty), mask=stored)


def backward_extra(
    inputs: Inputs, gradients: Gradients, where: Geometry, scale: float, capability: Capability
) -> tuple[Tensor, Tensor]:
    """Gradients of the extra keys and values, ``[B, rows * R, Hkv, D]`` in their dtype."""
    q, keys, values, d_out = inputs.q, inputs.extra_k, inputs.extra_v, gradients.d_out
    assert keys is not None
    assert values is not None
    assert where.anchors is not None
    d_keys, d_values = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (keys, values))
    if d_keys.numel() == 0 or q.numel() == 0 or where.main is None:
        return d_keys.zero_(), d_values.zero_()
    batch, n_queries, n_heads, head_dim = q.shape
    n_kv_heads = keys.shape[2]
    tile = backward_extra_tile(capability, head_dim, q.dtype)
    use_tma = can_use_tma(capability, where, where.main, q, d_out)
    n_extra = keys.shape[1] // where.anchors.extra_keys
    parts = -(-where.anchors.extra_keys // tile.n)
    backward_extra_kernel[(n_extra * parts * n_kv_heads * batch,)](
        tile_source(q, tile.m, use_tma), keys, values, tile_source(d_out, tile.m, use_tma),
        gradients.lse2, gradients.delta, d_keys, d_values,
        blocks=where.extra_documents(q.device), documents=where.document_table(q.device),
        n_keys=inputs.k.shape[1], offset=inputs.k.shape[1] - n_queries, n_extra=n_extra,
        n_kv_heads=n_kv_heads,
        stride_qb=q.stride(0), stride_qt=q.stride(1), stride_qh=q.stride(2),
        stride_eb=keys.stride(0), stride_et=keys.stride(1), stride_eh=keys.stride(2),
        stride_db=d_out.stride(0), stride_dt=d_out.stride(1), stride_dh=d_out.stride(2),
        stride_gb=d_keys.stride(0), stride_gt=d_keys.stride(1), stride_gh=d_keys.stride(2),
        stride_row=gradients.lse2.stride(1), scale=scale, scale2=scale * LOG2_E,
        extra_block=where.anchors.block, EXTRA=where.anchors.extra_keys,
        PACKED=where.packed, GROUP=n_heads // n_kv_heads, D=head_dim, BLOCK_D=padded_head_dim(head_dim),
        BLOCK_M=tile.m, BLOCK_N=tile.n, USE_TMA=use_tma, PRECISION=precision(q.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return d_keys, d_values
