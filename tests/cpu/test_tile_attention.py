"""The engine against a dense masked softmax written here: random schedules, edge shapes, every gradient, memory."""

import math
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sparse_attn.cpu import Assignment, steps, tile_attention
from sparse_attn.cpu.tiles import EXTRA, Piece, RowBlock
from sparse_attn.testing import assert_within_budget

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
SCALE = 0.3
GRADIENTS = ("dq", "dk", "dv", "dextra_k", "dextra_v")


@dataclass(frozen=True)
class Case:
    """One shape; its id in a report tells it whole. `logits`: the elements that a step may have."""

    T: int
    S: int
    Hq: int = 4
    Hkv: int = 2
    D: int = 16
    B: int = 1
    E: int = 0
    dtype: str = "fp32"
    logits: int = steps.LOGITS

    def __str__(self) -> str:
        shape = f"B{self.B}-T{self.T}-S{self.S}-Hq{self.Hq}-Hkv{self.Hkv}-D{self.D}-E{self.E}-{self.dtype}"
        return shape if self.logits == steps.LOGITS else f"{shape}-logits{self.logits}"

    def inputs(self) -> list[Tensor]:
        torch.manual_seed(zlib.crc32(str(self).encode()))
        tokens = [(self.T, self.Hq), (self.S, self.Hkv), (self.S, self.Hkv)] + [(self.E, self.Hkv)] * 2 * (self.E > 0)
        return [torch.randn(self.B, n, heads, self.D).to(DTYPES[self.dtype]) for n, heads in tokens]


class RandomSchedule:
    """Row blocks of every kind, the same at each walk. Rows meet in several blocks, but no key twice."""

    def __init__(self, seed: str, rows: int, keys: int, extra: int = 0) -> None:
        self.seed, self.shape, self.walks = seed, (rows, keys, extra), 0

    def __iter__(self) -> Iterator[RowBlock]:
        self.walks += 1
        draw = random.Random(self.seed)
        rows, keys, extra = self.shape
        middle = keys // 2  # contiguous row blocks read the first half, strided ones the second
        start = 0
        while start < rows:
            stop = min(rows, start + draw.randint(1, 70))
            if draw.random() < 0.9:
                pieces = [*_pieces(draw, stop - start, 0, middle + 1), *_extra_pieces(draw, stop - start, extra)]
                yield RowBlock(slice(start, stop), tuple(pieces))
            start = stop
        step = draw.randint(1, 5)
        for first in range(step):
            if first < rows:
                block = slice(first, rows, step)
                yield RowBlock(block, tuple(_pieces(draw, len(range(first, rows, step)), middle + 1, keys)))

    def mask(self) -> Tensor:
        """How often each row names each key, the extra keys after those of the sequence."""
        rows, keys, extra = self.shape
        count = torch.zeros(rows, keys + extra, dtype=torch.int64)
        for block in self:
            for piece in block.pieces:
                columns = torch.arange(extra if piece.source == EXTRA else keys)[piece.keys]
                columns = columns + (keys if piece.source == EXTRA else 0)
                keep = torch.ones(len(block), len(columns), dtype=torch.bool) if piece.keep is None else piece.keep
                block_rows = torch.arange(rows)[block.rows]
                count[block_rows[:, None], columns] += keep
        assert count.max() <= 1
        return count.bool()


def _pieces(draw: random.Random, rows: int, start: int, stop: int) -> Iterator[Piece]:
    """Disjoint pieces of the keys start .. stop: slices, strided slices, gathered keys, masked and not."""
    while start < stop:
        end = min(stop, start + draw.randint(1, 60))
        kind = draw.choice(["slice", "slice", "strided", "gathered", "nothing"])
        if kind == "slice":
            yield Piece(slice(start, end), _keep(draw, rows, end - start))
        elif kind == "strided":
            step = draw.randint(2, 4)
            for first in range(start, min(end, start + 2)):
                yield Piece(slice(first, end, step), _keep(draw, rows, len(range(first, end, step))))
        elif kind == "gathered":
            chosen = draw.sample(range(start, end), draw.randint(0, end - start))
            yield Piece(torch.tensor(chosen, dtype=torch.int64), _keep(draw, rows, len(chosen)))
        start = end


def _extra_pieces(draw: random.Random, rows: int, extra: int) -> Iterator[Piece]:
    if extra:
        start = draw.randrange(extra)
        yield Piece(slice(start, extra), _keep(draw, rows, extra - start), EXTRA)


def _keep(draw: random.Random, rows: int, keys: int) -> Tensor | None:
    if draw.random() < 0.4:
        return None
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    return torch.rand(rows, keys, generator=generator) < draw.choice([0.0, 0.5, 0.9])


def dense(mask: Tensor, q: Tensor, k: Tensor, v: Tensor, *extra: Tensor) -> tuple[Tensor, Tensor]:
    """Masked softmax in the inputs' dtype; `mask` [T, S + E], or [Hkv, T, S + E]."""
    if extra:
        k, v = torch.cat([k, extra[0]], 1), torch.cat([v, extra[1]], 1)
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    mask = mask.expand(q.shape[2] // group, *mask.shape[-2:]).repeat_interleave(group, 0)
    logits = (torch.einsum("bthd,bshd->bhts", q, k) * SCALE).masked_fill(~mask, -math.inf)
    empty = ~mask.any(-1, keepdim=True)
    weights = logits.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    # softmax's own gradient of logsumexp, without its NaN for rows of minus infinities
    lse = logits.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty[..., 0], -math.inf)
    return torch.einsum("bhts,bshd->bthd", weights, v), lse.transpose(1, 2)


def results(call: Any, inputs: list[Tensor], d_out: Tensor, d_lse: Tensor) -> dict[str, Tensor]:
    """Output, LSE and the gradients of every input, from both."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out, lse = call(*inputs)
    finite = lse.detach() > -math.inf
    loss = (out * d_out.to(out.dtype)).sum() + (lse.where(finite, 0.0) * d_lse.to(lse.dtype)).sum()
    gradients = torch.autograd.grad(loss, inputs)
    return {"out": out, "lse": lse, **dict(zip(GRADIENTS, gradients, strict=False))}


def judge(inputs: list[Tensor], mask: Tensor, assignments: list[Assignment]) -> None:
    q = inputs[0]
    d_out, d_lse = torch.randn(q.shape).to(q.dtype), torch.randn(q.shape[:3])

    def tiles(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        extra = dict(zip(("extra_k", "extra_v"), tensors[3:], strict=False))
        return tile_attention(*tensors[:3], assignments, scale=SCALE, **extra)

    got = results(tiles, inputs, d_out, d_lse)
    oracle = results(lambda *xs: dense(mask, *xs), [x.double() for x in inputs], d_out.double(), d_lse.double())
    plain = results(lambda *xs: dense(mask, *xs), inputs, d_out, d_lse)
    for name, tensor in got.items():
        assert_within_budget(name, tensor, oracle[name], plain[name].to(tensor.dtype))


CASES = [
    Case(T=1, S=1, D=64),
    Case(T=1, S=300, D=64, dtype="bf16"),
    Case(T=3, S=200, Hq=6, Hkv=3, B=2, E=5),
    Case(T=65, S=200, Hq=8, D=64, dtype="bf16"),
    Case(T=257, S=257, Hq=2, Hkv=1, D=64, E=24),
    Case(T=80, S=150, D=96, dtype="fp16", E=7),
    Case(T=100, S=100, Hq=2, D=128, dtype="bf16"),
    Case(T=40, S=67, Hq=2, Hkv=1, D=256, E=3),
    Case(T=90, S=90, D=7, dtype="fp64", E=5),
    Case(T=200, S=220, Hq=3, Hkv=3, B=2),
    Case(T=200, S=220, Hq=6, Hkv=1, B=2, E=9, dtype="bf16"),
    Case(T=120, S=400, D=64, E=30, logits=4000),
    Case(T=8, S=30, Hq=5, Hkv=5, D=32, dtype="bf16", logits=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_random_schedules(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LOGITS", case.logits)
    schedule = RandomSchedule(str(case), case.T, case.S, case.E)
    judge(case.inputs(), schedule.mask(), [Assignment(schedule)])


def test_a_schedule_for_each_kv_head() -> None:
    case = Case(T=150, S=170, Hq=6, Hkv=3, E=11, B=2)
    schedules = [RandomSchedule(f"head {head}", case.T, case.S, case.E) for head in range(3)]
    mask = torch.stack([schedule.mask() for schedule in schedules])
    judge(case.inputs(), mask, [Assignment(s, heads=slice(head, head + 1)) for head, s in enumerate(schedules)])


def test_a_schedule_for_each_example() -> None:
    case = Case(T=40, S=60, B=2)
    schedules = [RandomSchedule(f"example {example}", case.T, case.S) for example in range(2)]
    both, _ = tile_attention(
        *case.inputs(), [Assignment(s, batch=slice(b, b + 1)) for b, s in enumerate(schedules)], scale=SCALE
    )
    for example, schedule in enumerate(schedules):
        one, _ = tile_attention(*[x[example : example + 1] for x in case.inputs()], [Assignment(schedule)], scale=SCALE)
        torch.testing.assert_close(both[example], one[0], rtol=0, atol=0)


@pytest.mark.parametrize("extra", [0, 3])
def test_gradients_by_finite_differences(extra: int) -> None:
    case = Case(T=6, S=9, Hq=2, Hkv=1, D=3, E=extra, dtype="fp64")
    schedule = RandomSchedule("differences", case.T, case.S, extra)
    inputs = [tensor.requires_grad_() for tensor in case.inputs()]

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        more = dict(zip(("extra_k", "extra_v"), tensors[3:], strict=False))
        out, lse = tile_attention(*tensors[:3], [Assignment(schedule)], scale=SCALE, **more)
        return out, lse.where(lse > -math.inf, 0.0)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


def _nothing() -> list[RowBlock]:
    """Row 0 in no block, row 1 in one without pieces, row 2 masked everywhere, row 3 sees key 4 only."""
    keep = torch.zeros(2, 5, dtype=torch.bool)
    keep[1, 4] = True
    return [RowBlock(slice(1, 2), ()), RowBlock(slice(2, 4), (Piece(slice(0, 5), keep),))]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rows_that_see_no_key(dtype: str) -> None:
    q, k, v = (x.requires_grad_() for x in Case(T=4, S=5, dtype=dtype).inputs())
    out, lse = tile_attention(q, k, v, [Assignment(_nothing())], scale=SCALE)
    assert (out[:, :3] == 0).all()
    assert (lse[:, :3] == -math.inf).all()
    torch.testing.assert_close(out[:, 3].unflatten(1, (2, 2)), v[:, 4, :, None].expand(-1, -1, 2, -1))
    dq, dk, dv = torch.autograd.grad((out * torch.randn_like(out)).sum() + lse[:, 3].sum(), (q, k, v))
    assert (dq[:, :3] == 0).all()
    assert (dk[:, :4] == 0).all()
    assert (dv[:, :4] == 0).all()
    assert all(torch.isfinite(gradient).all() for gradient in (dq, dk, dv))


def test_logits_far_apart() -> None:
    """Weights that underflow, and a row block whose keys all lie below those of an earlier one."""
    q, k, v = Case(T=8, S=40, dtype="fp64").inputs()
    k[:, :20] *= 60
    blocks = [RowBlock(slice(0, 8), (Piece(slice(start, start + 20)),)) for start in (0, 20)]
    for order in (blocks, blocks[::-1]):
        judge([x.float() for x in (q, k, v)], torch.ones(8, 40, dtype=torch.bool), [Assignment(order)])


@pytest.mark.parametrize("wanted", ["q", "k", "v", "extra_v", "lse only"])
def test_only_what_is_wanted_is_computed(wanted: str) -> None:
    case = Case(T=30, S=50, E=6)
    names = ("q", "k", "v", "extra_k", "extra_v")
    inputs = dict(zip(names, case.inputs(), strict=True))
    schedule = RandomSchedule("wanted", case.T, case.S, case.E)
    ask = ["q", "k", "extra_k"] if wanted == "lse only" else [wanted]

    def gradients(asked: list[str]) -> list[Tensor]:
        tensors = {name: x.detach().requires_grad_(name in asked) for name, x in inputs.items()}
        out, lse = tile_attention(*[tensors.pop(n) for n in "qkv"], [Assignment(schedule)], scale=SCALE, **tensors)
        leaves = [out.grad_fn.next_functions[names.index(name)][0].variable for name in ask]
        loss = lse.where(lse > -math.inf, 0.0).sum() if wanted == "lse only" else out.square().sum()
        return list(torch.autograd.grad(loss, leaves))

    for some, full in zip(gradients(ask), gradients(list(names)), strict=True):
        torch.testing.assert_close(some, full, rtol=0, atol=0)


def test_tensors_of_any_strides() -> None:
    """Hugging Face's `[B, H, T, D]`, transposed, and one tensor that holds q, k and v."""
    case = Case(T=40, S=40, Hq=2, Hkv=2, B=2)
    schedule = [Assignment(RandomSchedule("strides", 40, 40))]
    expected = tile_attention(*case.inputs(), schedule, scale=SCALE)
    packed = torch.stack(case.inputs(), dim=3).unbind(3)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case.inputs()]
    for inputs in (packed, transposed):
        for got, want in zip(tile_attention(*inputs, schedule, scale=SCALE), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("Hkv", "B"), [(2, 1), (3, 1), (1, 3)])
def test_any_number_of_threads_gives_the_same_bits(Hkv: int, B: int) -> None:
    case = Case(T=300, S=300, Hq=2 * Hkv, Hkv=Hkv, B=B, E=8)
    schedule = RandomSchedule("threads", case.T, case.S, case.E)

    def run(threads: int) -> dict[str, Tensor]:
        torch.set_num_threads(threads)
        inputs = case.inputs()
        d_out, d_lse = torch.randn(inputs[0].shape), torch.randn(inputs[0].shape[:3])

        def call(*xs: Tensor) -> tuple[Tensor, Tensor]:
            return tile_attention(*xs[:3], [Assignment(schedule)], scale=SCALE, extra_k=xs[3], extra_v=xs[4])

        found = results(call, inputs, d_out, d_lse)
        assert torch.get_num_threads() == threads
        return found

    one, two = run(1), run(2)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_failing_schedule_fails_the_call(threads: int) -> None:
    def failing() -> Iterator[RowBlock]:
        yield from RandomSchedule("failing", 50, 50)
        raise OverflowError("no more rows")

    torch.set_num_threads(threads)
    with pytest.raises(OverflowError, match="no more rows"):
        tile_attention(*Case(T=50, S=50).inputs(), [Assignment(failing())], scale=SCALE)
    assert torch.get_num_threads() == threads


def test_autocast_does_not_reach_the_sums() -> None:
    case = Case(T=64, S=64)
    schedule = [Assignment(RandomSchedule("autocast", 64, 64))]
    expected, _ = tile_attention(*case.inputs(), schedule, scale=SCALE)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = tile_attention(*case.inputs(), schedule, scale=SCALE)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_schedule_is_walked_once_each_way() -> None:
    case = Case(T=80, S=80, Hq=6, Hkv=3, B=2)
    schedule = RandomSchedule("walks", 80, 80)
    q, k, v = (x.requires_grad_() for x in case.inputs())
    out, _ = tile_attention(q, k, v, [Assignment(schedule)], scale=SCALE)
    assert schedule.walks == 1
    out.sum().backward()
    assert schedule.walks == 2


class Allocations(TorchDispatchMode):
    """Bytes of the storages that operations return and did not get."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)}
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.total += tensor.untyped_storage().nbytes()
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


def _window(rows: int, left: int, block: int = 128) -> Iterator[RowBlock]:
    for start in range(0, rows, block):
        stop, first = min(rows, start + block), max(0, start - left + 1)
        i, j = torch.arange(start, stop)[:, None], torch.arange(first, stop)
        yield RowBlock(slice(start, stop), (Piece(slice(first, stop), (j <= i) & (j > i - left)),))


@pytest.mark.usefixtures("_threads")
def test_memory_is_linear_in_the_tokens() -> None:
    torch.set_num_threads(1)  # a dispatch mode does not see other threads

    def allocations(rows: int) -> Allocations:
        q, k, v = (x.requires_grad_() for x in Case(T=rows, S=rows, Hq=2, Hkv=1, dtype="bf16").inputs())
        with Allocations() as counted:
            tile_attention(q, k, v, [Assignment(list(_window(rows, 100)))], scale=SCALE)[0].sum().backward()
        return counted

    short, long = allocations(2048), allocations(8192)
    assert long.total < 4.2 * short.total
    assert long.largest == 8192 * 2 * 16 * 4  # the float32 sums of q's shape, and nothing larger
