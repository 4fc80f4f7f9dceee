"""Anchors against the oracle, in every form: whole, in chunks, token by token; causal, bidirectional, packed."""

import zlib
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sparse_attn.cache import AnchorCache
from sparse_attn.ops import AnchorState, AnchorWeights, anchor_keys, anchor_scan, pool_blocks
from sparse_attn.reference import anchor_rows
from sparse_attn.testing import assert_within_budget

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
HKV, R = 2, 3


@dataclass(frozen=True)
class Case:
    S: int
    block: int = 8
    D: int = 16
    B: int = 1
    dtype: str = "fp32"
    pooling: str = "learned"
    causal: bool = True
    cu_seqlens: tuple[int, ...] | None = None

    def __str__(self) -> str:
        form = "causal" if self.causal else "bidirectional"
        packed = "" if self.cu_seqlens is None else "-packed"
        return f"{form}-{self.pooling}-B{self.B}-S{self.S}-block{self.block}-D{self.D}-{self.dtype}{packed}"

    def inputs(self) -> list[Tensor]:
        """k, v, then the weights."""
        torch.manual_seed(zlib.crc32(str(self).encode()))
        lead = (self.B,) if self.cu_seqlens is None else ()
        shapes = [
            (*lead, self.S, HKV, self.D), (*lead, self.S, HKV, self.D),
            (HKV, R, self.D), (HKV, R), (HKV, R, self.D), (HKV, R, self.D), (HKV, self.D),
        ]  # fmt: skip
        if self.pooling == "mean":
            shapes.pop()
        return [(2 * torch.randn(shape)).to(DTYPES[self.dtype]) for shape in shapes]

    def run(self, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        k, v, *weights = tensors
        return anchor_keys(
            k, v, AnchorWeights(*weights), self.block, causal=self.causal, cu_seqlens=self.cu_seqlens
        )  # fmt: skip

    def oracle(self, tensors: list[Tensor]) -> list[Tensor]:
        k, v, *weights = tensors
        if self.cu_seqlens is not None:
            k, v = k[None], v[None]
        rows = anchor_rows(k, v, *weights, block=self.block, causal=self.causal, cu_seqlens=self.cu_seqlens)
        return [x[0] for x in rows] if self.cu_seqlens is not None else list(rows)

    def plain(self, tensors: list[Tensor]) -> list[Tensor]:
        """A masked softmax over blocks in the inputs' dtype: what one writes down without a library."""
        k, v, queries, logit, first_k, first_v, *pooling = tensors
        k, v = (x[None] if self.cu_seqlens is not None else x for x in (k, v))
        bounds = [0, self.S] if self.cu_seqlens is None else self.cu_seqlens
        found: list[list[Tensor]] = [[], []]
        for start, stop in pairwise(bounds):
            pooled = []
            for tokens in (slice(a, min(a + self.block, stop)) for a in range(start, stop, self.block)):
                logits = (k[:, tokens] * (pooling[0] if pooling else 0.0)).sum(-1, keepdim=True) * self.D**-0.5
                weights = logits.softmax(1)
                pooled.append(((weights * k[:, tokens]).sum(1), (weights * v[:, tokens]).sum(1)))
            if not pooled:
                continue
            elements = [torch.stack(x, 1)[:, :, None].expand(-1, -1, R, -1, -1) for x in zip(*pooled, strict=True)]
            logits = torch.einsum("hrd,bnrhd->brhn", queries, elements[0]) * self.D**-0.5
            first = logit.t()[None, :, :, None].expand(logits.shape[0], -1, -1, 1)
            logits = torch.cat([first, logits], -1)[:, None].expand(-1, len(pooled), -1, -1, -1)
            if self.causal:
                n = torch.arange(len(pooled))
                hidden = torch.cat([torch.zeros(len(n), 1, dtype=torch.bool), n[None] >= n[:, None]], 1)
                logits = logits.masked_fill(hidden[None, :, None, None], float("-inf"))
            weights = logits.softmax(-1)
            for rows, element, initial in zip(found, elements, (first_k, first_v), strict=True):
                own = initial.transpose(0, 1)[None, None].expand(k.shape[0], -1, -1, -1, -1)
                rows.append(torch.einsum("bnrhm,bmrhd->bnrhd", weights, torch.cat([own, element], 1)))
        joined = [torch.cat(rows, 1) for rows in found]
        return [x[0] for x in joined] if self.cu_seqlens is not None else joined


CASES = [
    Case(S=70, B=2),
    Case(S=64, dtype="bf16"),
    Case(S=61, D=7, dtype="fp64", pooling="mean"),
    Case(S=300, block=16, D=64, dtype="fp16"),
    Case(S=1),
    Case(S=5, causal=False),
    Case(S=70, causal=False, B=2, pooling="mean"),
    Case(S=20, block=1, dtype="bf16"),
    Case(S=70, cu_seqlens=(0, 3, 3, 35, 70)),
    Case(S=70, cu_seqlens=(0, 16, 70), causal=False, dtype="bf16"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_and_gradients_against_the_oracle(case: Case) -> None:
    inputs = case.inputs()
    results = []
    for run, dtype in ((case.run, inputs[0].dtype), (case.oracle, torch.float64), (case.plain, inputs[0].dtype)):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
        rows = run(leaves)
        torch.manual_seed(1)
        loss = sum((x.double() * torch.randn(x.shape, dtype=torch.float64)).sum() for x in rows)
        assert isinstance(loss, Tensor)
        loss.backward()
        results.append([*rows, *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)])
    names = ["extra_k", "extra_v", "dk", "dv", "dqueries", "dlogit", "dinitial_k", "dinitial_v", "dpooling"]
    for name, got, oracle, plain in zip(names, *results, strict=False):
        assert_within_budget(name, got, oracle, plain)


def test_gradients_against_finite_differences() -> None:
    case = Case(S=5, block=2, D=2, dtype="fp64")
    leaves = [x.requires_grad_() for x in case.inputs()]
    assert torch.autograd.gradcheck(lambda *tensors: case.run(list(tensors)), leaves)


def test_gradients_flow_through_the_state() -> None:
    case = Case(S=4, D=3, dtype="fp64")
    k, v, *weights = [x.requires_grad_() for x in case.inputs()[:6]]

    def in_chunks(k: Tensor, v: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        own = AnchorWeights(*weights)
        first = anchor_scan(own.queries, k[:, :3], v[:, :3], own.initial)
        last = anchor_scan(own.queries, k[:, 3:], v[:, 3:], first[2])
        return (*first[:2], *last[:2], *last[2].row)

    assert torch.autograd.gradcheck(in_chunks, [k, v, *weights], fast_mode=True)


def in_chunks(case: Case, inputs: list[Tensor], sizes: list[int]) -> tuple[Tensor, Tensor]:
    """The rows that each token sees, one a token, from a cache that is fed so many tokens at a time."""
    k, v, *weights = inputs
    cache, start, found = AnchorCache(case.block), 0, []
    for size in sizes:
        rows = cache.extend(k[:, start : start + size], v[:, start : start + size], AnchorWeights(*weights))
        which = torch.arange(start, start + size) // case.block - start // case.block
        found.append([x[:, which] for x in rows])
        start += size
    assert cache.length == start
    return tuple(torch.cat(parts, 1) for parts in zip(*found, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("dtype", "pooling"),
    [("fp32", "learned"), ("bf16", "mean"), pytest.param("fp64", "learned", marks=pytest.mark.slow)],
)
def test_whole_chunks_and_single_tokens_have_the_same_bits(dtype: str, pooling: str) -> None:
    case = Case(S=83, block=8, D=24, B=2, dtype=dtype, pooling=pooling)
    inputs = case.inputs()
    which = torch.arange(case.S) // case.block
    whole = [x[:, which] for x in case.run(inputs)]
    for sizes in ([1] * 83, [3, 5, 8, 1, 43, 23], [83]):
        for one, other in zip(in_chunks(case, inputs, sizes), whole, strict=True):
            assert torch.equal(one, other)


def test_the_scan_goes_on_from_its_state_with_the_same_bits() -> None:
    case = Case(S=101, block=1, D=128)
    k, v, *weights = case.inputs()
    own = AnchorWeights(*weights[:4])
    rows_k, rows_v, end = anchor_scan(own.queries, k, v, own.initial)
    state: AnchorState = own.initial
    found = []
    for start, stop in pairwise([0, 1, 2, 40, 40, 101]):
        *rows, state = anchor_scan(own.queries, k[:, start:stop], v[:, start:stop], state)
        found.append(rows)
    assert torch.equal(torch.cat([rows[0] for rows in found], 1), rows_k)
    assert torch.equal(torch.cat([rows[1] for rows in found], 1), rows_v)
    assert all(torch.equal(one, other) for one, other in zip(state, end, strict=True))


@pytest.mark.parametrize("t", [0, 7, 30])
def test_a_token_changes_no_row_of_its_own_block_or_before(t: int) -> None:
    case = Case(S=60, B=2)
    inputs = case.inputs()
    changed = [x.clone() for x in inputs]
    for x in changed[:2]:
        x[:, t:] = 100 * torch.randn(2, 60 - t, HKV, case.D)
    rows = t // case.block + 1
    for before, after in zip(case.run(inputs), case.run(changed), strict=True):
        assert torch.equal(before[:, :rows], after[:, :rows])
        assert not torch.equal(before[:, rows], after[:, rows])
    for sizes in ([1] * 60, [7, 30, 23])[t == 0 :]:
        for before, after in zip(in_chunks(case, inputs, sizes), in_chunks(case, changed, sizes), strict=True):
            assert torch.equal(before[:, : t + 1], after[:, : t + 1])


def test_the_first_row_is_the_initial_element_alone() -> None:
    case = Case(S=5)
    rows = case.run(case.inputs())
    for row, initial in zip(rows, case.inputs()[4:6], strict=True):
        torch.testing.assert_close(row[0, 0], initial.transpose(0, 1))


def test_a_bad_document_reaches_no_other() -> None:
    case = Case(S=70, cu_seqlens=(0, 24, 44, 70))
    inputs = case.inputs()
    before = case.run(inputs)
    inputs[0][24:44] = inputs[1][30:44] = float("nan")
    inputs = [x.requires_grad_() for x in inputs]
    after = case.run(inputs)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:3], other[:3])
        assert torch.equal(one[6:], other[6:])
        assert other[3:6].isnan().any()
    (after[0][[0, 1, 2, 6, 7, 8]].sum() + after[1][[0, 1, 2, 6, 7, 8]].sum()).backward()
    assert inputs[0].grad is not None
    assert torch.isfinite(inputs[0].grad[:24]).all()
    assert torch.isfinite(inputs[0].grad[44:]).all()


def test_large_logits_stay_finite() -> None:
    case = Case(S=64)
    inputs = case.inputs()
    inputs[2] *= 1e4
    leaves = [x.requires_grad_() for x in inputs]
    rows = case.run(leaves)
    (rows[0].sum() + rows[1].sum()).backward()
    assert all(torch.isfinite(x).all() for x in (*rows, *(leaf.grad for leaf in leaves)))


def test_no_tokens_and_no_documents() -> None:
    assert case_shape(Case(S=0)) == (1, 0, R, HKV, 16)
    assert case_shape(Case(S=0, cu_seqlens=(0,))) == (0, R, HKV, 16)
    assert case_shape(Case(S=0, cu_seqlens=(0, 0))) == (0, R, HKV, 16)


def case_shape(case: Case) -> tuple[int, ...]:
    return tuple(case.run(case.inputs())[0].shape)


def test_the_cache_stays_as_small_as_it_was() -> None:
    case = Case(S=400)
    k, v, *weights = case.inputs()
    cache = AnchorCache(case.block)
    sizes = []
    for t in range(0, 400, 5):
        cache.extend(k[:, t : t + 5], v[:, t : t + 5], AnchorWeights(*weights))
        sizes.append(cache.nbytes)
    state = 4 * (2 * R * HKV + 2 * R * HKV * case.D)
    assert max(sizes) <= state + 2 * 4 * case.block * HKV * case.D
    assert max(sizes[-8:]) == max(sizes)


BAD = {
    "block": (lambda k, w: pool_blocks(k, k, 0), "block must be a positive integer, got 0"),
    "values": (lambda k, w: pool_blocks(k, k[:, 1:], 4), r"v must have k's shape \(1, 9, 2, 16\)"),
    "query": (lambda k, w: pool_blocks(k, k, 4, query=k[0, 0, :1]), r"query must have shape \(2, 16\)"),
    "bounds": (lambda k, w: pool_blocks(k[0], k[0], 4, cu_seqlens=[0, 4]), r"cu_seqlens must run from 0 to 9 .* got \[0, 4\]"),
    "queries": (lambda k, w: anchor_scan(w.queries[:1], k, k, w.initial), r"queries must have shape \(Hkv, R, D\) with Hkv=2"),
    "rows": (lambda k, w: anchor_scan(w.queries, k[0], k[0], w.initial, cu_rows=[0, 5, 3]), "cu_rows must run from 0 to 9"),
    "state": (lambda k, w: anchor_scan(w.queries, k, k, w.initial._replace(total=k)), "initial.total must have shape"),
    "no tokens": (lambda k, w: AnchorCache(4).extend(k[:, :0], k[:, :0], w), "at least one token"),
    "cache": (lambda k, w: AnchorCache(0), "block must be at least 1, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    k, _, *weights = Case(S=9).inputs()
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(k, AnchorWeights(*weights))
