"""What `attention` and `merge` say about wrong arguments."""

from typing import Any

import pytest
import torch

from sparse_attn import Anchors, Global, Sinks, Window, attention, merge


def call(**changes: Any) -> Any:
    arguments = {
        "q": torch.randn(2, 8, 4, 16),
        "k": torch.randn(2, 10, 2, 16),
        "v": torch.randn(2, 10, 2, 16),
        "pattern": Window(4) | Sinks(2),
    }
    return attention(**(arguments | changes))


def packed(**changes: Any) -> Any:
    arguments = {"q": torch.randn(8, 4, 16), "k": torch.randn(8, 2, 16), "v": torch.randn(8, 2, 16)}
    return call(**(arguments | {"cu_seqlens_q": [0, 3, 8]} | changes))


WRONG = {
    "list": ({"q": [1.0]}, "q must be a tensor, got list"),
    "dims": ({"k": torch.randn(10, 2, 16)}, r"k must have shape \[B, T, H, D\], got \(10, 2, 16\)"),
    "batch": ({"k": torch.randn(3, 10, 2, 16), "v": torch.randn(3, 10, 2, 16)}, "k has batch size 3, but q has 2"),
    "v": ({"v": torch.randn(2, 9, 2, 16)}, r"v must have k's shape \(2, 10, 2, 16\), got \(2, 9, 2, 16\)"),
    "heads": (
        {"q": torch.randn(2, 8, 5, 16)},
        "k has 2 heads, but q's 5 heads cannot be shared among them: Hq must be a positive multiple of Hkv",
    ),
    "head dim": ({"q": torch.randn(2, 8, 4, 8)}, "k has head dim 16, but q has 8"),
    "T > S": ({"q": torch.randn(2, 11, 4, 16)}, "q has T=11 queries, more than k's S=10 keys"),
    "integer": ({"q": torch.ones(2, 8, 4, 16, dtype=torch.int64)}, "q must be float16, .* got torch.int64"),
    "dtype": ({"k": torch.randn(2, 10, 2, 16).double()}, "k must have q's dtype torch.float32, got torch.float64"),
    "device": ({"v": torch.randn(2, 10, 2, 16, device="meta")}, "v must be on q's device cpu, got meta"),
    "text": ({"pattern": "window(4)"}, "pattern must be a Pattern .* got 'window\\(4\\)'; text goes through"),
    "no pattern": ({"pattern": None}, "pattern must be a Pattern such as .* got None"),
    "per head": ({"pattern": [Window(4)] * 3}, "one pattern per KV head, 2, got 3"),
    "in the list": ({"pattern": [Window(4), 3]}, "every KV head's must be a Pattern, got 3"),
    "examples": ({"pattern": Global([[1], [2], [3]])}, r"for 3 examples, but there are 2 batch examples"),
    "scale": ({"scale": float("nan")}, "scale must be a finite number or None, got nan"),
    "scale text": ({"scale": "1"}, "scale must be a finite number or None, got '1'"),
    "causal": ({"causal": "no"}, "causal must be True or False, got 'no'"),
    "implementations": ({"implementation": ["cpu"]}, "implementation must be None or one of"),
    "implementation": ({"implementation": "fast"}, "implementation must be None or one of .*, got 'fast'"),
    "anchors": (
        {"pattern": Window(4) | Anchors(4)},
        "extra_k is missing: a pattern with anchors needs its 4 ",
    ),
    "two anchors": (
        {"pattern": Anchors(4) | Anchors(5)},
        r"at most one term of summary keys, got anchors\(4\) and anchors\(5\)",
    ),
    "anchors per head": ({"pattern": [Anchors(4), Window(4)]}, "the same term of summary keys, and at most one"),
    "no anchors": (
        {"extra_k": torch.randn(2, 1, 4, 2, 16)},
        "extra_k was given, but the pattern has no Anchors or",
    ),
    "extra shape": (
        {"pattern": Anchors(4), "extra_k": torch.randn(2, 1, 3, 2, 16), "extra_v": torch.randn(2, 1, 4, 2, 16)},
        r"extra_k must have shape \(2, 1, 4, 2, 16\) .* got \(2, 1, 3, 2, 16\)",
    ),
    "k boundaries alone": ({"cu_seqlens_k": [0, 10]}, "cu_seqlens_k was given without cu_seqlens_q"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call(**changes)


WRONG_PACKED = {
    "batched": (
        {"q": torch.randn(1, 8, 4, 16)},
        r"q must have shape \[T, H, D\] with cu_seqlens_q, got \(1, 8, 4, 16\)",
    ),
    "end": ({"cu_seqlens_q": [0, 3, 7]}, "cu_seqlens_q must end at n_queries 8, got 7"),
    "number": ({"cu_seqlens_q": 5}, "cu_seqlens_q must be a one-dimensional integer tensor or list, got 5"),
    "order": ({"cu_seqlens_q": torch.tensor([0, 9, 8])}, "cu_seqlens_q must start at 0 and never decrease"),
    "float": ({"cu_seqlens_q": torch.tensor([0.0, 8.0])}, "must be a one-dimensional integer tensor or list"),
    "documents": ({"cu_seqlens_k": [0, 8]}, "cu_seqlens_k names 1 documents, but cu_seqlens_q names 2"),
    "T > S": ({"cu_seqlens_k": [0, 2, 8]}, "cu_seqlens_q gives document 0 3 queries, more than its 2 keys"),
    "no k boundaries": ({"k": torch.randn(9, 2, 16), "v": torch.randn(9, 2, 16)}, "cu_seqlens_k is missing: k has 9"),
    "examples": ({"pattern": Global([[1]])}, r"for 1 examples, but there are 2 documents"),
}


@pytest.mark.parametrize("name", WRONG_PACKED)
def test_a_wrong_packed_argument_is_named(name: str) -> None:
    changes, message = WRONG_PACKED[name]
    with pytest.raises(ValueError, match=message):
        packed(**changes)


def test_boundaries_may_be_lists_or_tensors() -> None:
    torch.manual_seed(1)
    by_list = packed()
    torch.manual_seed(1)
    assert torch.equal(packed(cu_seqlens_q=torch.tensor([0, 3, 8], dtype=torch.int32)), by_list)


def test_a_named_implementation_never_falls_back() -> None:
    tensors = {name: torch.randn(1, 8, 2, 16, device="meta") for name in ("q", "k", "v")}
    with pytest.raises(NotImplementedError, match="'cpu' takes CPU tensors, got q on meta; use 'reference'"):
        attention(**tensors, pattern=Window(4), implementation="cpu")
    with pytest.raises(NotImplementedError, match="no implementation for meta tensors"):
        attention(**tensors, pattern=Window(4))


def test_merge_names_what_is_wrong() -> None:
    out, lse = torch.randn(1, 3, 2, 4), torch.randn(1, 3, 2)
    with pytest.raises(ValueError, match="at least one, got 0 and 0"):
        merge([], [])
    with pytest.raises(ValueError, match=r"outs\[0\] and lses\[0\] must be tensors, got int and int"):
        merge([1], [2])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one, got 2 and 1"):
        merge([out, out], [lse])
    with pytest.raises(ValueError, match=r"outs\[1\] is \(1, 4, 2, 4\)"):
        merge([out, torch.randn(1, 4, 2, 4)], [lse, lse])
    with pytest.raises(ValueError, match=r"lses\[0\] must be \(1, 3, 2\)"):
        merge([out], [lse[:, :2]])
