"""Attention on a GPU: ours against PyTorch's dense and compiled sparse attention, checked first, in one process.

For each shape the answer comes first: output and gradients on a shorter sequence against masked attention in float32,
and sampled rows of the output at the shape itself. Then forward and backward passes are timed, all implementations in
turn: medians, with the 20th and 80th percentiles, of `triton.testing.do_bench`. TFLOP/s count kept pairs only, extra keys
included and of random blocks the whole blocks: 4 * Hq * D * pairs forward, 2.5 times that backward. "overhead" is the peak
of memory beyond inputs, outputs and gradients, as a share of them. flash-attn-4 runs where it is installed.
"""

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial, reduce
from operator import or_
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench

from sparse_attn.ops import attention
from sparse_attn.patterns import Anchors, Pattern, Random, parse

# Both give a tensor or, if asked, a pair; here it is always the tensor.
attend: Callable[..., Any] = attention
attend_dense: Callable[..., Any] = torch.nn.functional.scaled_dot_product_attention

CHECKED_LENGTH = 3000
ROUNDS = 3
SAMPLED_ROWS = 32
K = 1024


@dataclass(frozen=True)
class Shape:
    """One line of the table, and which peers run beside it."""

    pattern: str
    T: int
    Hq: int
    Hkv: int
    D: int
    causal: bool = True
    flex: bool = False
    dense: bool = True
    flex_backward: bool = True
    fa4: bool = False

    @property
    def name(self) -> str:
        return f"{self.pattern} {self.T // K}K D{self.D}"

    @property
    def pairs(self) -> int:
        pattern = parse(self.pattern)
        blocks = [term for term in pattern.terms if isinstance(term, Random)]
        whole = sum(term.blocks * term.block * self.T for term in blocks)  # less where there are fewer blocks to draw
        others = [term for term in pattern.terms if not isinstance(term, Random)]
        rest = reduce(or_, others).pairs(self.T, causal=self.causal)
        return rest + whole + pattern.extra_keys * self.T


SHAPES = [
    *(Shape("window(2048)", n * K, 32, 8, 128) for n in (1, 2)),
    *(Shape("window(2048)", n * K, 32, 8, 128, flex=True, fa4=True) for n in (4, 32, 128)),
    Shape("window(2048)", 512 * K, 32, 8, 128, dense=False, fa4=True),
    Shape("window(2048) | sinks(4)", 32 * K, 32, 8, 128, dense=False),
    Shape("window(2048) | anchors(64)", 32 * K, 32, 8, 128, dense=False),
    Shape("dilated(2048, 4)", 32 * K, 32, 8, 128, dense=False),
    Shape("window(1024) | dilated(1024, 8)", 32 * K, 32, 8, 128, dense=False),
    *(Shape("window(2048)", n * K, 32, 32, 64, causal=False, flex=n in (4, 32), fa4=True) for n in (4, 8, 16, 32)),
    Shape("window(2048)", 128 * K, 32, 32, 64, causal=False, dense=False, fa4=True),
    *(Shape("window(1024)", n * K, 8, 2, 128, dense=False) for n in (128, 1024)),
    *(Shape("window(1024) | sinks(4) | strided(1024)", n * K, 8, 2, 128, dense=False, flex=True, flex_backward=n < 512)
      for n in (128, 512, 1024)),
    Shape("window(1024) | sinks(4) | strided(256) | random(3)", 128 * K, 8, 2, 128, dense=False),
    Shape("full()", 32 * K, 32, 8, 128, fa4=True),
]  # fmt: skip


def run_benchmark(only: Sequence[str] = (), *, peers: bool = True) -> Iterator[dict[str, Any]]:
    """Results that grow by a row a shape, as `sparse-attn bench` writes them.

    Args:
        only: Beginnings of names, such as "window(2048) 32K D128"; none: all shapes.
        peers: Time other implementations beside ours.

    Raises:
        NotImplementedError: there is no CUDA device.
        AssertionError: an answer is wrong; nothing is timed then.
    """
    if not torch.cuda.is_available():
        raise NotImplementedError("bench: there is no CUDA device that PyTorch sees, and the CPU is not what it times")
    chosen = [shape for shape in SHAPES if not only or shape.name.startswith(tuple(only))]
    if not chosen:
        raise ValueError(f"only must begin one of {', '.join(shape.name for shape in SHAPES)}; got {', '.join(only)}")
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for shape in chosen:
        checked = check(shape)
        times = measure(shape, peers)
        date = datetime.now(UTC).date().isoformat()
        found = {"pairs": shape.pairs, "error": checked, "overhead": overhead(shape), "times": times}
        rows.append(asdict(shape) | found | {"dates": dict.fromkeys(times, date)})
        yield {
            "gpu": torch.cuda.get_device_name(),
            "date": date,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
            "units": "milliseconds: median, 20th and 80th percentile",
            "rows": rows,
        }


def folder_of(gpu: str) -> str:
    """The folder of a GPU's results, by the name that PyTorch gives it.

    >>> folder_of("NVIDIA H100 80GB HBM3"), folder_of("NVIDIA A10")
    ('h100', 'nvidia-a10')
    """
    return "h100" if "H100" in gpu else gpu.lower().replace(" ", "-")


def merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Results of some shapes put among those of an earlier run: ours anew, and of its peers those that were timed anew.

    Rows of another GPU, or of other versions, are not kept. A row's "dates" say when each implementation was timed.
    """
    if any(before.get(name) != now[name] for name in ("gpu", "versions", "units")):
        return now
    rows = {_case(row): row | {"dates": _dates(row, before)} for row in before["rows"]}
    for row in now["rows"]:
        old = rows.get(_case(row), {"times": {}, "dates": {}})
        rows[_case(row)] = row | {name: old[name] | row[name] for name in ("times", "dates")}
    order = [_case(asdict(shape)) for shape in SHAPES]
    return now | {"rows": sorted(rows.values(), key=lambda row: order.index(_case(row)) if _case(row) in order else -1)}


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("pattern", "T", "Hq", "Hkv", "D", "causal"))


def _dates(row: dict[str, Any], result: dict[str, Any]) -> dict[str, str]:
    return row.get("dates") or dict.fromkeys(row["times"], result["date"])


def check(shape: Shape) -> dict[str, float]:
    """Relative errors (Frobenius norm) of output and gradients, short, and of sampled rows at the full length.

    Raises:
        AssertionError: an error above 1%, twice what bfloat16 itself costs here and more.
    """
    pattern = parse(shape.pattern)
    length = min(shape.T, CHECKED_LENGTH)
    inputs, extra = _inputs(shape, length), _extra(shape, length)
    out = attend(*inputs, pattern, causal=shape.causal, **extra)
    leaves = [*inputs, *extra.values()]
    wide: list[Any] = [tensor.detach().float().requires_grad_() for tensor in leaves]
    wide_extra = dict(zip(extra, wide[3:], strict=True))
    expected = attend(*wide[:3], pattern, causal=shape.causal, implementation="reference", **wide_extra)
    weight = torch.randn_like(expected)
    out.backward(weight.bfloat16())
    expected.backward(weight)
    errors = {"out": _error(out, expected)}
    for name, got, leaf in zip(("q", "k", "v", *extra), leaves, wide, strict=False):
        errors[f"d{name}"] = _error(got.grad, leaf.grad)
    if not extra:
        errors["sampled_rows"] = _sampled_error(shape, pattern)
    assert max(errors.values()) < 0.01, f"{shape}: {errors}"
    return errors


def _sampled_error(shape: Shape, pattern: Pattern) -> float:
    q, k, v = (tensor.detach() for tensor in _inputs(shape, shape.T))
    out = attend(q, k, v, pattern, causal=shape.causal)
    chosen = np.unique(np.linspace(0, shape.T - 1, SAMPLED_ROWS).astype(np.int64))
    j = np.arange(shape.T)[None, :]
    keep = np.zeros((len(chosen), shape.T), dtype=bool)
    for term in pattern.terms:
        keep |= term.keeps(chosen[:, None], j, shape.T, shape.causal)
    if shape.causal:
        keep &= j <= chosen[:, None]
    expected = attend_dense(
        q[:, chosen].float().transpose(1, 2),
        k.float().transpose(1, 2),
        v.float().transpose(1, 2),
        attn_mask=torch.from_numpy(keep).to(q.device),
        enable_gqa=True,
    )
    return _error(out[:, chosen], expected.transpose(1, 2))


def overhead(shape: Shape) -> float:
    """Peak memory of forward and backward pass beyond inputs, outputs and gradients, as a share of them."""
    pattern = parse(shape.pattern)
    inputs, extra = _inputs(shape, shape.T), _extra(shape, shape.T)
    leaves = [*inputs, *extra.values()]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = attend(*inputs, pattern, causal=shape.causal, **extra)
    torch.autograd.grad(out, leaves, torch.empty_like(out).normal_())
    given = sum(tensor.nbytes for tensor in leaves)
    own = 2 * given + 2 * out.nbytes  # inputs and their gradients, the output and its gradient
    return (torch.cuda.max_memory_allocated() - before - (own - given)) / own


def measure(shape: Shape, peers: bool) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by implementation and pass: median, 20th and 80th percentile.

    All take turns, `ROUNDS` times: a card that grows warm and slows down slows all of them.
    """
    pattern = parse(shape.pattern)
    (q, k, v), extra = _inputs(shape, shape.T), _extra(shape, shape.T)
    own = partial(attend, q, k, v, pattern, causal=shape.causal, **extra)
    runs: dict[str, tuple[Callable[[], Tensor], Any, bool]] = {"sparse-attn": (own, (q, k, v, *extra.values()), True)}
    if peers:
        runs |= _peers(shape, (q, k, v))
    backward = {name: _backward(run, inputs) for name, (run, inputs, wanted) in runs.items() if wanted}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in runs}
    for _ in range(ROUNDS):
        for name, (run, _, _) in runs.items():
            with torch.no_grad():
                found[name].setdefault("forward", []).extend(_timed(run))
            if name in backward:
                found[name].setdefault("backward", []).extend(_timed(backward[name]))
    return {
        name: {step: np.quantile(times, [0.5, 0.2, 0.8]).tolist() for step, times in steps.items()}
        for name, steps in found.items()
    }


def _peers(shape: Shape, inputs: tuple[Any, ...]) -> dict[str, tuple[Callable[[], Tensor], Any, bool]]:
    """By name: a call, what its gradients are of, and whether a backward pass is timed."""
    runs: dict[str, tuple[Callable[[], Tensor], Any, bool]] = {}
    if shape.fa4 and (flash := _fa4(shape)) is not None:
        runs["flash-attn-4"] = (partial(flash, *inputs), inputs, True)
    if not (shape.dense or shape.flex):
        return runs
    flipped: list[Any] = [tensor.detach().transpose(1, 2).contiguous().requires_grad_() for tensor in inputs]
    if shape.dense:
        for name, backend in (("SDPA flash", SDPBackend.FLASH_ATTENTION), ("SDPA cuDNN", SDPBackend.CUDNN_ATTENTION)):
            runs[name] = (partial(_dense_by, backend, flipped, shape.causal), flipped, shape.T <= 32 * K)
    if shape.flex:
        runs["FlexAttention"] = (_flex(shape, flipped), flipped, shape.flex_backward)
    return runs


def _dense_by(backend: SDPBackend, inputs: list[Any], causal: bool) -> Tensor:
    with sdpa_kernel(backend):
        return attend_dense(*inputs, is_causal=causal, enable_gqa=True)  # type: ignore[no-any-return]


def _backward(run: Callable[[], Tensor], inputs: Any) -> Callable[[], Any]:
    out = run()
    return partial(torch.autograd.grad, out, inputs, torch.randn_like(out), retain_graph=True)


def _timed(run: Callable[[], Any]) -> list[float]:
    return do_bench(run, warmup=15, rep=60, return_mode="all")  # type: ignore[no-any-return]


def _fa4(shape: Shape) -> Callable[..., Tensor] | None:
    try:
        from flash_attn.cute import flash_attn_func  # type: ignore[import-not-found]
    except ImportError:
        return None
    if shape.pattern == "full()":
        return lambda q, k, v: flash_attn_func(q, k, v, causal=shape.causal)[0]
    sides = (2047, 0 if shape.causal else 2047)
    return lambda q, k, v: flash_attn_func(q, k, v, window_size=sides)[0]


def _flex(shape: Shape, inputs: list[Any]) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    scattered = "strided" in shape.pattern
    width = 1024 if scattered else 2048

    def kept(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        near = (i - j < width) if shape.causal else ((i - j < width) & (j - i < width))
        if scattered:
            near = near | (j < 4) | (j % 1024 == 0)
        return near & (j <= i) if shape.causal else near

    mask = create_block_mask(kept, None, None, shape.T, shape.T, device="cuda", _compile=True)
    compiled: Any = torch.compile(flex_attention)
    return lambda: compiled(*inputs, block_mask=mask, enable_gqa=True)


def _inputs(shape: Shape, n: int) -> list[Any]:
    heads = (shape.Hq, shape.Hkv, shape.Hkv)
    return [torch.randn(1, n, h, shape.D, device="cuda", dtype=torch.bfloat16).requires_grad_() for h in heads]


def _extra(shape: Shape, n: int) -> dict[str, Any]:
    anchors = next((term for term in parse(shape.pattern).terms if isinstance(term, Anchors)), None)
    if anchors is None:
        return {}
    size = (1, -(-n // anchors.block), anchors.r, shape.Hkv, shape.D)
    made = {name: torch.randn(size, device="cuda", dtype=torch.bfloat16) for name in ("extra_k", "extra_v")}
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def _error(got: Tensor | None, expected: Tensor | None) -> float:
    assert got is not None
    assert expected is not None
    error = ((got.float() - expected.float()).norm() / expected.float().norm()).item()
    return math.inf if math.isnan(error) else error


def describe_row(row: dict[str, Any]) -> str:
    """One line of text for a row of the results."""
    flops = 4 * row["Hq"] * row["D"] * row["pairs"]
    parts = []
    for name, times in row["times"].items():
        shown = [f"{name}"]
        for step, factor in (("forward", 1.0), ("backward", 2.5)):
            if step in times:
                median = times[step][0]
                rate = f" ({factor * flops / median / 1e9:.0f} TFLOP/s)" if name == "sparse-attn" else ""
                shown.append(f"{step} {median:.3f} ms{rate}")
        parts.append(" ".join(shown))
    form = "causal" if row["causal"] else "bidirectional"
    parts.append(f"memory beyond the tensors {row['overhead']:.1%}")
    return f"{row['pattern']} {form} T={row['T']} Hq={row['Hq']} Hkv={row['Hkv']} D={row['D']}: " + "; ".join(parts)
