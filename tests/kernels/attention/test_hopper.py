"""Hopper's kernels against the oracle, where there is such a GPU; what they refuse, everywhere."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from sparse_attn import Sinks, Window, attention, parse
from sparse_attn.testing.judge_attention import judge_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def inputs(
    T: int, S: int, Hq: int, Hkv: int, D: int, dtype: torch.dtype = torch.bfloat16, B: int = 1
) -> dict[str, torch.Tensor]:
    shapes = {"q": (T, Hq), "k": (S, Hkv), "v": (S, Hkv)}
    return {name: torch.randn(B, n, heads, D, device=DEVICE).to(dtype) for name, (n, heads) in shapes.items()}


def extra(
    pattern: str, rows: int, Hkv: int, D: int, dtype: torch.dtype = torch.bfloat16, B: int = 1
) -> dict[str, torch.Tensor]:
    """Extra keys and values, where a pattern has some."""
    count = parse(pattern).extra_keys
    names = ("extra_k", "extra_v") if count else ()
    return {name: torch.randn(B, rows, count, Hkv, D, device=DEVICE).to(dtype) for name in names}


def judge(given: dict[str, torch.Tensor], pattern: str, **options: Any) -> None:
    judge_attention(given, parse(pattern), implementation="hopper", **options)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_HOPPER, reason="needs an H100 or H200")
class TestOnHopper:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    @pytest.mark.parametrize("D", [64, 128, 256])
    @pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
    @pytest.mark.parametrize(
        ("pattern", "T", "S"),
        [
            ("window(300)", 1300, 1500),
            ("window(700)", 1024, 1024),
            ("window(100) | chunked(256)", 1000, 1000),
            ("window(5, right=40)", 500, 513),
            ("chunked(192)", 777, 800),
            ("window(1)", 300, 300),
            ("full()", 1, 700),
            ("full()", 400, 900),
            ("window(30)", 1, 1),
        ],
    )
    def test_shapes(self, pattern: str, T: int, S: int, causal: bool, D: int, dtype: torch.dtype) -> None:
        judge(inputs(T, S, 8, 2, D, dtype), pattern, causal=causal)

    @pytest.mark.parametrize("D", [64, 128, 256])
    @pytest.mark.parametrize(
        "pattern", ["window(90)", "window(70) | sinks(4)", "window(50) | strided(7) | anchors(64, block=128)"]
    )
    def test_calls_alike_read_the_tensors_of_each(self, pattern: str, D: int) -> None:
        T, kept = 700, []
        for _ in range(3):  # the first goes through Triton; all stay alive, so that none stands where another stood
            kept.append(inputs(T, T, 8, 2, D) | extra(pattern, -(-T // 128), 2, D))
            judge(kept[-1], pattern, causal=True)

    @pytest.mark.parametrize("D", [64, 128, 256])
    @pytest.mark.parametrize("pattern", ["window(90)", "window(70) | sinks(4)"])
    def test_calls_alike_differ_in_scale_and_in_what_comes_back(self, pattern: str, D: int) -> None:
        T, Hq = 500, 8
        given = inputs(T, T, Hq, 2, D)
        whole, by_head, one = (torch.randn(1, *size, D, device=DEVICE) for size in ((T, Hq), (Hq, T), (T, 1)))
        d_lse = torch.randn(1, T, Hq, device=DEVICE)
        for scale, d_out, d_lses in (
            (0.1, whole, []),
            (0.2, by_head.transpose(1, 2), [d_lse]),
            (0.1, one.expand(1, T, Hq, D), []),
            (0.3, whole, [d_lse]),
        ):
            found = []
            for name, dtype in (("hopper", torch.bfloat16), ("reference", torch.float32)):
                leaves = {key: x.detach().to(dtype).requires_grad_() for key, x in given.items()}
                out, lse = attention(
                    **leaves, pattern=parse(pattern), scale=scale, return_lse=True, implementation=name
                )
                torch.autograd.backward([out, lse][: 1 + len(d_lses)], [d_out.to(dtype), *d_lses])
                found.append([out, *(leaf.grad for leaf in leaves.values())])
            for got, expected in zip(*found, strict=True):
                assert (got.float() - expected).norm() < 0.01 * expected.norm()

    @pytest.mark.parametrize("D", [64, 128, 256])
    def test_captured_in_a_cuda_graph(self, D: int) -> None:
        pattern = parse("window(90) | sinks(4)")
        given = list(inputs(700, 700, 8, 2, D).values())
        d_out = torch.randn_like(given[0])

        def step() -> tuple[torch.Tensor, ...]:
            leaves = [x.detach().requires_grad_() for x in given]  # autograd ties a leaf to the stream of its first use
            out = attention(*leaves, pattern, implementation="hopper")
            return out, *torch.autograd.grad(out, leaves, d_out)

        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for tensor in (*given, d_out):
            tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))

    @pytest.mark.parametrize("D", [64, 128, 256])
    @pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
    @pytest.mark.parametrize(
        ("pattern", "T", "S"),
        [
            ("window(150) | sinks(4)", 700, 900),
            ("window(100) | sinks(3) | strided(5)", 900, 900),
            ("window(40) | strided(3)", 1, 800),
            ("window(200) | anchors(64, block=128)", 1000, 1000),
            ("window(70) | anchors(5, block=48)", 300, 470),
            ("window(70) | anchors(64, block=384)", 700, 900),
            ("window(70) | anchors(64, block=64)", 700, 900),
            ("window(70) | anchors(16, block=48)", 700, 700),
            ("window(70) | anchors(64, block=96)", 700, 700),
            ("window(70) | chunked(300) | anchors(32, block=128)", 900, 900),
            ("window(90) | anchors(128, block=128)", 500, 500),
            ("window(60) | anchors(200, block=256) | sinks(2) | strided(64)", 777, 800),
            ("chunked(100) | window(20) | sinks(150)", 600, 700),
            ("window(900) | sinks(3)", 500, 500),  # the columns lie in every interval
        ],
    )
    def test_columns_and_extra_keys(self, pattern: str, T: int, S: int, causal: bool, D: int) -> None:
        summaries = parse(pattern).extra_keys and next(t for t in parse(pattern).terms if hasattr(t, "r"))
        rows = -(-S // summaries.block) if summaries else 0
        judge(inputs(T, S, 8, 2, D, B=2) | extra(pattern, rows, 2, D, B=2), pattern, causal=causal)

    @pytest.mark.parametrize("D", [64, 128, 256])
    @pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
    @pytest.mark.parametrize(
        ("pattern", "T", "S", "Hq", "Hkv", "B"),
        [  # few heads of one example: each of the oracle's matrices takes up to 2 GB as it is
            ("window(64) | sinks(4)", 9000, 9000, 4, 2, 1),
            ("window(64) | sinks(4)", 2500, 2600, 4, 2, 3),
            ("window(64) | strided(32)", 5000, 6000, 8, 1, 1),
        ],
    )
    def test_many_shares_of_columns(
        self, pattern: str, T: int, S: int, Hq: int, Hkv: int, B: int, causal: bool, D: int
    ) -> None:
        judge(inputs(T, S, Hq, Hkv, D, B=B), pattern, causal=causal)

    @pytest.mark.parametrize("D", [64, 128])
    @pytest.mark.parametrize(("Hq", "Hkv", "B"), [(4, 4, 3), (6, 1, 2), (16, 16, 10)])
    def test_columns_of_heads_and_examples(self, Hq: int, Hkv: int, B: int, D: int) -> None:
        judge(inputs(300, 400, Hq, Hkv, D, B=B), "window(30) | sinks(3) | strided(9)", scale=0.3)

    @pytest.mark.parametrize("D", [64, 128, 256])
    def test_columns_and_extra_keys_in_half_precision(self, D: int) -> None:
        pattern, half = "window(60) | anchors(64, block=128) | sinks(2) | strided(9)", torch.float16
        judge(inputs(777, 777, 4, 1, D, half) | extra(pattern, 7, 1, D, half), pattern)

    @pytest.mark.parametrize("D", [64, 128, 256])
    @pytest.mark.parametrize(("Hq", "Hkv"), [(4, 4), (6, 1)])
    def test_heads_and_examples(self, Hq: int, Hkv: int, D: int) -> None:
        judge(inputs(300, 400, Hq, Hkv, D, B=3), "window(130)", scale=0.3)

    @pytest.mark.parametrize("D", [64, 128, 256])
    @pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
    def test_packed_documents(self, D: int, causal: bool) -> None:
        packed = {name: tensor[0] for name, tensor in inputs(700, 900, 4, 2, D).items()}
        bounds = {"cu_seqlens_q": [0, 10, 10, 341, 342, 700], "cu_seqlens_k": [0, 10, 20, 470, 500, 900]}
        for pattern in ("window(150)", "window(20) | chunked(128)", "full()", "window(40) | sinks(3) | strided(7)"):
            judge(packed, pattern, causal=causal, **bounds)
        for pattern in ("window(50) | anchors(24, block=64) | sinks(2)", "window(50) | anchors(64, block=64)"):
            rows = sum(-(-(stop - start) // 64) for start, stop in pairwise(bounds["cu_seqlens_k"]))
            beside = {name: tensor[0] for name, tensor in extra(pattern, rows, 2, D).items()}
            judge(packed | beside, pattern, causal=causal, **bounds)

    @pytest.mark.parametrize("D", [64, 128, 256])
    def test_a_bad_document_reaches_no_other(self, D: int) -> None:
        packed = {name: tensor[0] for name, tensor in inputs(900, 900, 4, 2, D).items()}
        arguments: dict[str, Any] = {"pattern": Window(150) | Sinks(3), "cu_seqlens_q": [0, 200, 500, 900]}
        before = attention(**packed, **arguments, implementation="hopper")
        for tensor in packed.values():
            tensor[200:500] = float("nan")
        leaves = {name: tensor.requires_grad_() for name, tensor in packed.items()}
        after = attention(**leaves, **arguments, implementation="hopper")
        after.nan_to_num().sum().backward()
        for rows in (slice(0, 200), slice(500, 900)):
            assert torch.equal(after[rows], before[rows])
            assert all(torch.isfinite(leaf.grad[rows]).all() for leaf in leaves.values())

    @pytest.mark.parametrize("D", [128, 256])
    def test_strided_inputs_are_read_right(self, D: int) -> None:
        given = inputs(500, 500, 4, 2, D, B=2)
        heads_first = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in given.items()}
        padded = {name: torch.cat([x, x], -1)[..., : x.shape[-1]] for name, x in given.items()}
        found = []
        for views in (given, heads_first, padded, given | {"v": heads_first["v"]}):
            leaves = {name: x.detach().requires_grad_() for name, x in views.items()}
            out = attention(**leaves, pattern=Window(90) | Sinks(4), implementation="hopper")
            found.append([out, *torch.autograd.grad(out.float().square().sum(), list(leaves.values()))])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))

    @pytest.mark.parametrize("D", [64, 128, 256])
    @pytest.mark.parametrize("pattern", ["full()", "window(900) | anchors(16, block=128)"])
    def test_logits_that_rise_from_tile_to_tile(self, pattern: str, D: int) -> None:
        """By 1 and 6 in base 2, which leaves a row's maximum as it was for a while or one tile, and by 20 and 200."""
        given = inputs(1500, 1500, 4, 4, D) | extra(pattern, 12, 4, D)
        heights = torch.arange(1500, 0, -1, device=DEVICE)[:, None] / 64 * 0.6931471805599453 * D**0.5 / 16
        given["k"][..., 0] = heights.to(given["k"].dtype)
        given["q"][..., 0] = torch.tensor([1.0, 6.0, 20.0, 200.0], device=DEVICE).to(given["q"].dtype) * 16
        judge(given, pattern)

    @pytest.mark.parametrize("D", [64, 128, 256])
    @pytest.mark.parametrize("pattern", ["window(700) | sinks(4)", "window(90) | strided(11)"])
    def test_gradients_repeat_to_the_bit(self, pattern: str, D: int) -> None:
        given = inputs(3000, 3000, 8, 2, D)
        runs = []
        for _ in range(3):
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
            out = attention(**leaves, pattern=parse(pattern), implementation="hopper")
            out.square().sum().backward()
            runs.append([out, *(leaf.grad for leaf in leaves.values())])
        for run in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))

    @pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
    @pytest.mark.parametrize("window", [512, 1024])
    def test_windows_of_models_with_wide_heads(self, window: int, causal: bool) -> None:
        judge(inputs(2600, 2600, 8, 4, 256), f"window({window})", causal=causal)  # every program takes several blocks

    @pytest.mark.parametrize(
        "pattern",
        ["window(9) | dilated(9, 4)", "window(9) | random(1)", "window(9) | sinks(4).within(window(40))", "sinks(9)"],
    )
    def test_other_patterns_are_refused_by_name_and_served_without(self, pattern: str) -> None:
        given = inputs(200, 200, 2, 1, 64)
        with pytest.raises(NotImplementedError, match=r"'hopper' takes windows, .*; use 'triton'"):
            attention(**given, pattern=parse(pattern), implementation="hopper")
        attention(**given, pattern=parse(pattern))

    def test_what_is_refused(self) -> None:
        for given, options, text in (
            (inputs(99, 99, 2, 1, 96), {}, "head dims 64, 128, 256, got 96"),
            (inputs(99, 99, 2, 1, 64, torch.float32), {}, "float16 and bfloat16, got torch.float32"),
            (inputs(99, 99, 2, 1, 64), {"scale": -1.0}, "scales above 0, got -1.0"),
            (inputs(99, 99, 2, 1, 64), {"scale": 0.0}, "scales above 0, got 0.0"),
        ):
            with pytest.raises(NotImplementedError, match=text):
                attention(**given, pattern=Window(9), implementation="hopper", **options)
            attention(**given, pattern=Window(9), **options)


@pytest.mark.skipif(ON_HOPPER, reason="here they run")
def test_another_device_is_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match=r"implementation '(hopper|triton)' (needs|takes) .*; use"):
        attention(**inputs(20, 20, 2, 1, 64), pattern=Window(4), implementation="hopper")
