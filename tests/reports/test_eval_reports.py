"""The evaluation's reports: self-contained, escaped, and saying what the numbers say."""

import re
from html.parser import HTMLParser

import pytest

from sparse_attn.evals.corpus import Corpus
from sparse_attn.evals.plan import Plan, even_depths
from sparse_attn.evals.results_file import ResultsFile
from sparse_attn.evals.runner import plan_rows, run
from sparse_attn.evals.summary import summarize
from sparse_attn.reports.eval_html import _step_colour, render
from sparse_attn.reports.eval_markdown import render_markdown
from sparse_attn.reports.eval_text import covered, headline

from ..evals.test_runner import Oracle

EVIL = "<script>alert('x')</script> & \"quoted\" | `code`"


@pytest.fixture(scope="module")
def summary():
    plan = Plan(
        ("needle", "common_words", "perplexity"), (1024, 2048), even_depths(3), 2, plan_rows(["window(8)"]),
        prompts=("plain", "verify"),
    )  # fmt: skip
    reader = Oracle(sparse=lambda right: EVIL)
    entries = run(reader, Corpus(reader), plan, ResultsFile(None, {}))
    lost = next(entry for entry in entries if entry["kind"] == "answer" and not entry["correct"])
    failure = {**lost, "view": [0] * 40 + [3] * 40 + [2] * 80 + [1] * 80, "layers": 3, "chooses": False}
    about = {"model": EVIL, "text": "a book", "date": "today"}
    return {"about": about, **summarize(plan, entries, margin=0.02), "failures": [failure]}


@pytest.fixture(scope="module")
def page(summary):
    return render(summary)


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

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(page):
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.links) == 2 * (3 + 1) + 1  # needle: maps, positions, Pareto; words: Pareto; perplexity
    assert all(link.startswith("data:image/svg+xml") for link in parsed.links)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)


def test_whatever_comes_from_outside_is_escaped(page, summary):
    assert "script" not in Page(page).tags
    assert "&lt;script&gt;alert" in page
    assert "`<script>alert('x')</script> & \"quoted\" | 'code'`" in render_markdown(summary)


def test_numbers_and_verdicts_are_told(page, summary):
    for text in (page, render_markdown(summary)):
        assert "0 of 12 right, dense 12: worse, 12 lost and 0 gained" in text
        assert "worse than dense by 100.0%, more than 2.0%" in text
        assert "verify instead of plain: 12 instead of 12 of 12 right" in text
    assert "| dense | 6 of 6 (61% to 100%) | 6 of 6 (61% to 100%) | 12 of 12 (76% to 100%) |" in render_markdown(
        summary
    )


def test_the_headline_names_the_perplexity_of_the_longest_text(summary):
    assert "window(8): perplexity 20.1 at 2K, 2.72 times dense." in headline(summary)


def test_the_view_in_words():
    entry = {"view": [0, 3, 2, 1], "tokens": 400, "layers": 5, "chooses": False}
    assert "direct view" in covered({**entry, "facts": [[310, 320]]})
    assert covered({**entry, "facts": [[310, 320], [110, 120]]}).endswith("through 3 layers of 5")
    assert "could not reach the question's end through all 5 layers" in covered({**entry, "facts": [[5, 9]]})
    assert covered({**entry, "facts": []}).startswith("25% of the text")
    assert "what it chose by content is not drawn" in covered({**entry, "facts": [[5, 9]], "chooses": True})


def test_made_up_citations_are_told_apart():
    """Of three samples: a citation of a document that is there, and another of one that is nowhere."""

    def cite(right):
        line = right.splitlines()[1]
        return f'Answer: nobody\n{line}\n[D5] "It is so."'  # identifiers have three digits

    plan = Plan(("citations",), (2048,), (0.5,), 3, plan_rows(["window(8)"]))
    reader = Oracle(sparse=cite)
    summary = summarize(plan, run(reader, Corpus(reader), plan, ResultsFile(None, {})))
    summary |= {"about": {"model": "m", "text": "t", "date": "d"}, "failures": []}
    told = (
        "answer right in 0 of 3; cited 3 documents rightly and 3 wrongly, 3 of these made up (no such document); "
        "3 of 6 quotes stand word for word in the document that they name"
    )
    for text in (render(summary), render_markdown(summary)):
        assert told in text
        assert "answer right in 3 of 3; cited 6 documents rightly and 0 wrongly, 0 of these made up" in text


def test_the_direct_view_is_darkest_and_what_is_out_of_reach_is_grey():
    def lightness(step):
        return sum(int(_step_colour(step, 5)[at : at + 2], 16) for at in (1, 3, 5))

    assert lightness(1) < lightness(2) < lightness(5) < 3 * 255
    assert _step_colour(0, 5) == "#e9edf2"
