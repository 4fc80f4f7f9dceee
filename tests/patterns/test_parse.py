"""Patterns as text, as values, and what is said about wrong ones."""

import pickle

import numpy as np
import pytest
from hypothesis import given

from sparse_attn.patterns import Anchors, Dilated, Global, Pattern, Random, Sinks, Strided, Window, parse
from sparse_attn.patterns.parse import _TERMS
from tests.patterns.strategies import patterns


@given(patterns())
def test_repr_is_the_text_that_parse_reads(pattern: Pattern) -> None:
    assert parse(repr(pattern)) == pattern
    assert hash(parse(repr(pattern))) == hash(pattern)
    assert pickle.loads(pickle.dumps(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("window(2048) | sinks(4)", Window(2048) | Sinks(4)),
        ("Window(8,right=3)|SINKS(4)", Window(8, 3) | Sinks(4)),
        ("global((3, 1))", Global([1, 3])),
        ("global([[1], [2, 3]])", Global([[1], [2, 3]])),
        ("random(3, seed=7, block=32) | anchors()", Random(3, 7, 32) | Anchors(64, 128)),
        ("(window(4) | strided(8)).within(window(16))", (Window(4) | Strided(8)).within(Window(16))),
        ("dilated(None, 4).within(window(9)).within(window(5, 1))", Dilated(None, 4).within(Window(5, 1))),
        (" full ( ) ", parse("full()")),
    ],
)
def test_what_texts_mean(text: str, pattern: Pattern) -> None:
    assert parse(text) == pattern


def test_a_pattern_is_a_value() -> None:
    assert Window(4) | Sinks(2) == Sinks(2) | Window(4) | Window(4)
    assert Window(4) | Window(4) == Window(4)
    assert len({Window(4) | Sinks(2), Sinks(2) | Window(4), Window(np.int64(4)) | Sinks(2)}) == 1
    with pytest.raises(AttributeError):
        Window(4).left = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windw(3)", r"unknown term 'windw'; known terms: window, chunked"),
        ("windw", r"expected a term with its arguments, e\.g\. 'full\(\)', got 'windw'"),
        ("window", r"window lacks its arguments: write e\.g\. window\(64\)$"),
        ("Anchors | window(4)", r"anchors lacks its arguments: write e\.g\. anchors\(64\)$"),
        ("global", r"global lacks its arguments: write e\.g\. global\(\(0, 100\)\)$"),
        (
            "auto",
            r"auto is no pattern of its own: .* it stands for window\(64\) \| sinks\(64\) \| coverblocks\(0\.94\)",
        ),
        ("window()", r"missing a required argument: 'left' \(it is window\(left, right"),
        ("window(1, 2, 3)", r"too many positional arguments"),
        ("window(left=3, width=2)", r"unexpected keyword argument 'width'"),
        ("window(-3)", r"Window: left must be a positive integer, got -3"),
        ("window(0)", r"Window: left must be a positive integer, got 0"),
        ("window(left=3, left=4)", r"window is given an argument twice"),
        ("window(4, **{'right': 0})", r"the arguments of window must be numbers, or lists of them"),
        ("global({1: 2})", r"the arguments of global must be numbers, or lists of them"),
        ("window_(4)", r"unknown term 'window_'"),
        ("window(2.5)", r"Window: left must be a positive integer, got 2\.5"),
        ("window('4')", r"left must be a positive integer, got '4'"),
        ("window(True)", r"left must be a positive integer, got True"),
        ("window(4, right=-1)", r"right must be a non-negative integer, got -1"),
        ("window(10**9)", r"the arguments of window must be plain numbers"),
        ("window(n)", r"the arguments of window must be plain numbers"),
        ("window(4) + sinks(2)", r"expected terms joined by '\|', got 'window\(4\) \+ sinks\(2\)'"),
        ("window(4) | ", r"cannot be read"),
        ("", r"cannot be read"),
        ("window(4) sinks(2)", r"cannot be read"),
        ("4", r"expected terms joined by '\|', got '4'"),
        ("__import__('os').system('true')", r"expected terms joined"),
        ("strided(4, 4)", r"Strided: offset must be below stride 4, got 4"),
        ("strided(4, rows='some')", r"rows must be 'all' or 'strided', got 'some'"),
        ("global((1, -2))", r"positions must be non-negative integers, got \[1, -2\]"),
        ("global((1, (2,)))", r"mixes numbers and lists"),
        ("global(3)", r"positions must be a list of positions"),
        ("random(0)", r"blocks must be a positive integer"),
        ("random(2, seed=-1)", r"seed must be a non-negative integer"),
        ("dilated(4, 0)", r"dilation must be a positive integer"),
        ("window(4).within(sinks(2))", r"within takes a window, got sinks\(2\)"),
        ("window(4).within(4)", r"expected terms joined by '\|', got '4'"),
        ("window(4).within()", r"within takes one window"),
        ("anchors(8).within(window(4))", r"anchors\(8\) cannot be cut to a window"),
        ("window(" + "9" * 30 + ")", r"left must be below 2\*\*62"),
        ("(" * 5000 + "full()" + ")" * 5000, r"cannot be read"),
    ],
)
def test_wrong_text_gets_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", _TERMS)
def test_a_bare_name_gets_an_example_that_can_be_read(name: str) -> None:
    with pytest.raises(ValueError, match="lacks its arguments") as caught:
        parse(name)
    example = parse(str(caught.value).partition("write e.g. ")[2])
    assert type(example) is _TERMS[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_queries": -1}, r"n_queries must be a non-negative integer, got -1"),
        ({"n_queries": 2.0}, r"n_queries must be a non-negative integer, got 2\.0"),
        ({"n_queries": 5, "n_keys": 4}, r"n_queries must be at most n_keys 4 \(queries .*\), got 5"),
        ({}, r"n_queries is missing"),
        ({"n_queries": 4, "cu_seqlens_k": [0, 4]}, r"cu_seqlens_k was given without cu_seqlens_q"),
        ({"n_queries": 4, "cu_seqlens_q": [0, 3]}, r"cu_seqlens_q must end at n_queries 4, got 3"),
        ({"cu_seqlens_q": [1, 3]}, r"cu_seqlens_q must start at 0 and never decrease"),
        ({"cu_seqlens_q": [0, 3, 2]}, r"cu_seqlens_q must start at 0 and never decrease"),
        ({"cu_seqlens_q": [[0], [1, 2]]}, r"cu_seqlens_q must be a one-dimensional list of integers"),
        ({"cu_seqlens_q": [0.5]}, r"cu_seqlens_q must be a one-dimensional list of integers"),
        ({"cu_seqlens_q": [0, 3], "cu_seqlens_k": [0, 2, 4]}, r"cu_seqlens_k names 2 documents, but .* names 1"),
        ({"cu_seqlens_q": [0, 3], "cu_seqlens_k": [0, 2]}, r"gives document 0 3 queries, more than its 2 keys"),
        ({"n_keys": 9, "cu_seqlens_q": [0, 3]}, r"cu_seqlens_k is missing: n_keys is 9"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("question", ["mask", "pairs", "layout"])
def test_wrong_lengths_get_one_sentence(question: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(Window(4), question)(**arguments)


@pytest.mark.parametrize("block", [0, -1, 2.5, True])
def test_wrong_tiles_get_one_sentence(block: object) -> None:
    with pytest.raises(ValueError, match="block_q must be a positive integer"):
        Window(4).layout(8, block_q=block)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block_k must be a positive integer"):
        Window(4).layout(8, block_k=block)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            "sinks(4)",
            r"^pattern: '\|' unites patterns and terms .*, got 'sinks\(4\)'; text goes through sparse_attn\.parse$",
        ),
        (4, r"got 4$"),
        (None, r"got None; where there is nothing to add, leave it out$"),
        (Sinks, r"Sinks is missing its arguments$"),
    ],
    ids=repr,
)
def test_what_is_no_pattern_cannot_be_united(other: object, message: str) -> None:
    for pattern in (Window(4), Window(4) | Sinks(2), Window(4).within(Window(2))):
        with pytest.raises(TypeError, match=message):
            pattern | other  # type: ignore[operator]
        with pytest.raises(TypeError, match=message):
            other | pattern  # type: ignore[operator]
