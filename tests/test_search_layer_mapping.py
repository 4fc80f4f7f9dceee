"""The search for layers that must stay full, on a reader that tells in which layers its retrieval lives."""

from dataclasses import dataclass

import pytest
from rich.progress import Progress

from scripts.search_layer_mapping import Notebook, Search, print_findings

RETRIEVAL = {2: 5.0, 4: 3.0}  # harm of making the layer sparse


@dataclass
class Reading:
    answer: str
    prefill_seconds: float
    surprise: float
    scored_tokens: int


@dataclass
class Cost:
    kept_pairs: int = 3
    dense_pairs: int = 10
    cache_bytes: int = 4
    dense_cache_bytes: int = 8


class Head:
    layers = 6
    last_pairs = None
    context = 2000

    def __init__(self):
        self.reads = 0
        self.sparse = set()

    def encode(self, text):
        return [ord(character) for character in text]

    def chat_frame(self):
        return "<", ">"

    def attend(self, patterns):
        self.sparse = {layer for layer, pattern in enumerate(patterns) if pattern}

    def read(self, tokens, *, scored=(), answer_tokens=16):
        self.reads += 1
        count = sum(map(len, scored))
        harm = sum(RETRIEVAL.get(layer, 0.01 * layer) for layer in self.sparse)
        text = "".join(map(chr, tokens))
        if not answer_tokens:
            assert text[scored[0].start : scored[0].stop].strip().isdigit()
        return Reading("" if harm > 1 else text, 0.1, harm * count, count)

    def cost(self, patterns, tokens):
        return Cost()


@pytest.fixture
def progress():
    return Progress(disable=True)


def test_the_search_leaves_retrieval_for_last(tmp_path, progress, capsys):
    reader = Head()
    finder = Search(reader, "window(8)", Notebook(tmp_path / "notes.jsonl"), 800, (0.1, 0.5), tries=2)
    order = finder.path(progress)
    assert [layer for layer, _ in order] == [0, 1, 3, 5, 4, 2]
    assert order[-1][1] == pytest.approx(8.09)
    rows = [
        (size, finder.check(tuple(sorted(layer for layer, _ in order[:size])), [800], (0.1, 0.9), progress))
        for size in (0, 4, 5)
    ]
    assert [sum(needle["found"] for needle in cells["800"]["needles"]) for _, cells in rows] == [2, 2, 0]
    print_findings(6, order, rows)
    assert "2,4" in capsys.readouterr().out


def test_what_was_measured_is_not_measured_again(tmp_path, progress):
    reader, notes = Head(), tmp_path / "notes.jsonl"

    def everything():
        finder = Search(reader, "window(8)", Notebook(notes), 800, (0.1,), tries=2)
        return finder.path(progress), finder.check((0, 1), [800], (0.1,), progress)

    first = everything()
    reads = reader.reads
    assert reads
    assert everything() == first
    assert reader.reads == reads
