"""The report: self-contained, escaped, and saying what the numbers say."""

import base64
import re
from html.parser import HTMLParser

import pytest

from sparse_attn.reports.demo_html import render
from sparse_attn.reports.demo_result import DemoResult, describe_row, summary
from sparse_attn.reports.demo_table import length_table

EVIL = "<script>alert('x')</script> & \"quoted\""
ROWS = [
    {"name": "dense", "pattern": None, "full_layers": (), "layers": 4},
    {"name": "window", "pattern": "window(512)", "full_layers": (), "layers": 4},
    {"name": "mapping", "pattern": "window(512)", "full_layers": (0, 2), "layers": 4},
]


def cell(row, length, pairs, seconds, found):
    return {
        "row": row, "length": length, "prefill_seconds": seconds, "kept_pairs": pairs, "dense_pairs": 1_000_000,
        "cache_bytes": pairs, "dense_cache_bytes": 1_000_000, "perplexity": 20.0, "text_tokens": length - 60,
        "needles": [
            {"depth": depth, "secret": "12345", "answer": EVIL, "found": number < found}
            for number, depth in enumerate((0.1, 0.5, 0.9))
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def result():
    cells = [
        cell(name, length, pairs, seconds * length / 1024, found)
        for length in (1024, 2048)
        for name, pairs, seconds, found in [
            ("dense", 1_000_000, 2.0, 3),
            ("window", 250_000, 1.5, 0),
            ("mapping", 625_000, 1.8, 2),
        ]
    ]
    return DemoResult(about={"model": EVIL, "text": "a book", "date": "today"}, rows=ROWS, cells=cells)


def test_a_row_that_was_not_read_at_every_length(result):
    cells = [one for one in result.cells if (one["row"], one["length"]) != ("mapping", 1024)]
    part = DemoResult(result.about, result.rows, cells)
    assert "“mapping”, found 2 of 3: at 2,048 tokens" in summary(part)
    assert [len(length_table(part, length).rows) for length in part.lengths] == [2, 3]
    assert render(part, PICTURES, picture_tokens=2048).count("<td><i class") == 5


@pytest.fixture(scope="module")
def text(result):
    return render(result, PICTURES, picture_tokens=2048)


PICTURES = {"full()": (b"png-full", ("full()",)), "window(512)": (b"png-window", ("window(512)",))}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(text):
    page = Page(text)
    assert page.open == []
    assert page.links
    assert all(link.startswith("data:image/") for link in page.links)
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    assert base64.b64encode(b"png-window").decode() in text


def test_whatever_comes_from_outside_is_escaped(text):
    assert "script" not in Page(text).tags
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_every_number_of_the_run_is_in_the_report(text):
    for number in ["1,000,000", "250,000", "625,000", "2.00 s", "1.50 s", "3.60 s", "1,024 tokens", "2,048 tokens"]:
        assert number in text
    assert text.count('class="dot yes"') == 2 * 2 * 5  # in the tables and beside the answers
    assert text.count('class="dot no"') == 2 * 2 * 4


def test_the_summary_takes_the_row_that_finds_most(result):
    said = summary(result)
    assert "Dense attention found 6 of 6 needles" in said
    assert "best sparse row, “mapping”, found 4" in said
    assert "at 2,048 tokens it computed 62% of the pairs" in said
    assert "3.6 s instead of 4.0 s" in said
    assert "“window”: 0 of 6" in said


def test_rows_in_words():
    assert describe_row(ROWS[0]) == "full attention in all 4 layers, the model as it came"
    assert describe_row(ROWS[1]) == "window(512) in all 4 layers"
    assert describe_row(ROWS[2]) == "window(512) in 2 of 4 layers; full attention in layers 0, 2"


def test_the_table_fits_a_terminal_of_eighty(result):
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    console.print(length_table(result, 2048))
    out = console.file.getvalue()
    assert "…" not in out
    assert "1,000,000" in out
    assert out.count("✔") == 5
