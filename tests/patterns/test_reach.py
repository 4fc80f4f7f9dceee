"""Reach against boolean matrix powers of the mask, on sequences long enough that their ends do not matter."""

import numpy as np
import pytest

from sparse_attn.patterns import Global, Pattern, Random, Reach, Sinks, Window, parse


def powers(pattern: Pattern, n: int, layers: int, causal: bool) -> np.ndarray:
    """reached[l, i, j]: whether key j's information is at position i after l + 1 layers."""
    hop = pattern.mask(n, causal=causal).astype(np.float32)
    reached = [hop]
    for _ in range(layers - 1):
        reached.append(np.minimum(hop @ reached[-1], 1.0))
    return np.stack(reached) > 0


BOUNDED = [
    "window(5)",
    "window(3, right=9)",
    "chunked(7)",
    "dilated(3, 4)",
    "window(4) | chunked(9)",
    "window(4) | dilated(3, 5)",
    "chunked(6) | chunked(4)",
    "chunked(8) | dilated(2, 5)",
    "full().within(window(6))",
    "chunked(10).within(window(4)) | window(2)",
    "dilated(None, 3).within(window(8))",
]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("text", BOUNDED)
def test_tokens_is_the_farthest_that_information_travels(text: str, causal: bool) -> None:
    pattern = parse(text)
    n, layers = 260, 5
    reached = powers(pattern, n, layers, causal)
    i, j = np.indices((n, n))
    for layer in range(layers):
        farthest = np.abs(i - j)[reached[layer]].max() + 1
        assert pattern.reach(layer + 1, causal=causal).tokens == farthest
    assert pattern.reach(1, causal=causal).layers_to_any is None


TO_ANY = [
    ("full()", 1),
    ("window(8) | strided(8)", 2),
    ("window(5) | strided(9)", 3),
    ("window(2) | strided(6)", 6),
    ("chunked(8) | strided(8, offset=7)", 2),
    ("window(6) | dilated(None, 6)", 2),
    ("window(3) | dilated(None, 6)", 4),
    ("window(4) | strided(8, rows='strided')", 7),
    ("dilated(None, 4)", None),
    ("strided(4)", None),
    ("dilated(4, 4) | strided(8)", None),
    ("window(8) | sinks(4)", None),
    ("(window(8) | strided(8)).within(window(12))", None),
]


@pytest.mark.parametrize(("text", "known"), TO_ANY)
def test_layers_to_any_is_when_every_pair_is_reached(text: str, known: int | None) -> None:
    pattern = parse(text)
    for causal in (True, False):
        got = pattern.reach(4, causal=causal).layers_to_any
        if causal:
            assert got == known
        # 24 layers and 400 tokens: bounded hops alone cannot cover the distance between the two stretches looked at.
        n, layers = 400, 24
        reached = powers(pattern, n, layers, causal)
        wanted = np.ones((n, n), bool) if not causal else np.tri(n, dtype=bool)
        inner = np.zeros((n, n), bool)
        inner[40:360, 40:120] = inner[40:120, 40:360] = True
        covered = [bool((reached[layer] | ~(wanted & inner)).all()) for layer in range(layers)]
        assert got == (covered.index(True) + 1 if any(covered) else None)


def test_long_windows_and_periods_are_answered_at_once() -> None:
    assert parse("window(1000000000000) | full()").reach(30).layers_to_any == 1
    assert parse("window(1048576) | strided(1024)").reach(30).layers_to_any == 2
    assert parse("window(4096) | strided(1024) | chunked(512)").reach(30).layers_to_any == 2
    assert parse("window(2) | strided(999983)").reach(30).layers_to_any is None  # not worked out


@pytest.mark.parametrize(
    ("text", "layers", "tokens"),
    [
        ("window(1000000000000000000)", 30, 30 * (10**18 - 1) + 1),
        ("dilated(10000000000, 1000000000)", 40, 40 * (10**10 - 1) * 10**9 + 1),
        ("window(4) | chunked(7)", 10**6, 6 + (10**6 // 2 - 1) * 7 + 3 + 1),  # 6, then 3 and 4 by turns
        ("anchortree(20) | chunked(10)", 1000, 1000 * (128 * sum(4**level for level in range(1, 21)) + 127) + 1),
        ("anchortree(40)", 30, None),  # past every position
        ("anchortree(1000000000) | window(4)", 30, None),
        ("window(1000000000000000000) | chunked(1000000)", 10**9, 10**9 * (10**18 - 1) + 1),
    ],
)
def test_far_hops_are_exact(text: str, layers: int, tokens: int | None) -> None:
    """Python's integers have no end; positions of 64 bits do."""
    assert parse(text).reach(layers).tokens == tokens


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(
    "text", ["window(4) | chunked(9)", "chunked(6) | chunked(4)", "window(2, right=3) | chunked(5)"]
)
@pytest.mark.parametrize("layers", [1, 6, 7, 13])
def test_many_layers_are_single_hops_one_after_the_other(text: str, layers: int, causal: bool) -> None:
    pattern = parse(text)
    n = 30 * layers + 200
    hop = pattern.mask(n, causal=causal)
    first, last = hop.argmax(1), n - 1 - hop[:, ::-1].argmax(1)  # of each query's keys
    low = high = np.arange(n)
    for _ in range(layers):
        low, high = first[low], last[high]
    inner = slice(10 * layers + 60, 10 * layers + 140)  # from where no end is met
    at = np.arange(n)[inner]
    assert pattern.reach(layers, causal=causal).tokens == max((at - low[inner]).max(), (high[inner] - at).max()) + 1


def test_a_tree_past_every_position_brings_what_anchors_bring() -> None:
    flat = parse("window(4) | anchors(1, block=16)").reach(9).layers_to_any
    assert flat is not None
    assert parse("window(4) | anchortree(40, block=16)").reach(9) == Reach(9, None, flat)
    assert parse("window(4) | anchortree(4, block=16)").reach(9).layers_to_any is None


def test_keys_at_fixed_positions_reach_far_but_carry_only_themselves() -> None:
    assert (Window(8) | Sinks(4)).reach(3) == Reach(3, None, None)
    assert (Window(8) | Global([0])).reach(3) == Reach(3, None, None)
    assert (Window(8) | Global([0])).reach(3, causal=False) == Reach(3, None, 2)
    assert (Window(8) | Random(3)).reach(3, causal=False) == Reach(3, None, None)


@pytest.mark.parametrize("layers", [0, -1, 2.5, True, "3"])
def test_layers_must_be_a_positive_integer(layers: object) -> None:
    with pytest.raises(ValueError, match="layers must be a positive integer"):
        Window(4).reach(layers)  # type: ignore[arg-type]
