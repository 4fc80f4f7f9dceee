"""The runner against readers made of nothing: pairing, resuming, batches, verdicts, and clear words for what is wrong."""

import json
from dataclasses import dataclass

import pytest

from sparse_attn.evals.corpus import Corpus
from sparse_attn.evals.plan import Plan, even_depths
from sparse_attn.evals.results_file import ResultsFile
from sparse_attn.evals.runner import plan_rows, run
from sparse_attn.evals.summary import summarize
from sparse_attn.evals.tasks import TASKS
from sparse_attn.evals.tasks.perplexity import text_piece
from sparse_attn.evals.verdict import FAIL, INCONCLUSIVE, PASS

from . import oracle
from .sides import Words

HEADER = {"model": "oracle", "seed": 0}


@dataclass
class Reading:
    surprise_by_part: tuple


@dataclass
class Cost:
    kept_pairs: int
    dense_pairs: int = 100
    cache_bytes: int = 4
    dense_cache_bytes: int = 8


class Oracle(Words):
    """Answers by rule while dense; while sparse as told."""

    layers = 3
    context = 20_000
    last_pairs = None

    def __init__(self, sparse=lambda right: right, die_after=None):
        super().__init__()
        self.sparse, self.left = sparse, die_after
        self.patterns = (None,) * 3
        self.batches = []

    def attend(self, patterns):
        self.patterns = tuple(patterns)

    def read_many(self, prompts, *, answer_tokens=16):
        if self.left is not None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        self.batches.append((len(prompts[0]), len(prompts), self.patterns))
        return [self.answer(self.text(tokens)) for tokens in prompts]

    def answer(self, text):
        right = oracle.answer(text.removeprefix("<user>").removesuffix("<model>"))
        return right if self.patterns == (None,) * 3 else self.sparse(right)

    def read(self, tokens, *, scored=(), answer_tokens=16):
        factor = 2.0 if self.patterns == (None,) * 3 else 3.0
        return Reading(tuple(factor * len(part) for part in scored))

    def cost(self, patterns, tokens):
        return Cost(100 if all(pattern is None for pattern in patterns) else 30)


def plan(tasks=("needle",), lengths=(1500, 2000), rows=("window(8)",), **options):
    given = {"depths": even_depths(3), "samples": 2} | options
    return Plan(tasks, lengths, rows=plan_rows(rows), **given)


def evaluate(reader, planned, path=None):
    return run(reader, Corpus(reader), planned, ResultsFile(path, HEADER))


def test_the_oracle_is_right_in_every_task_through_the_runner():
    planned = plan(tasks=tuple(TASKS), lengths=(3000,), prompts=("plain",), samples=1, difficulty=2)
    summary = summarize(planned, evaluate(Oracle(), planned))
    assert {score["accuracy"] for score in summary["scores"]} == {1.0}
    assert {score["task"] for score in summary["scores"]} == set(TASKS)


def test_every_row_reads_the_same_samples():
    reader = Oracle(sparse=lambda right: "no idea")
    planned = plan(rows=("window(8)", "window(9)"))
    entries = [entry for entry in evaluate(reader, planned) if entry["kind"] == "answer"]
    digests = {row.name: [e["digest"] for e in entries if e["row"] == row.name] for row in planned.rows}
    assert len(digests["dense"]) == 2 * 3 * 2
    assert digests["dense"] == digests["window(8)"] == digests["window(9)"]
    assert len(set(digests["dense"])) == 12
    assert [e["correct"] for e in entries if e["row"] == "dense"] == [True] * 12
    assert not any(e["correct"] for e in entries if e["row"] != "dense")
    assert reader.patterns == (None,) * 3


def test_batches_are_of_one_length_and_bounded():
    reader = Oracle()
    evaluate(reader, plan(batch_tokens=6000))
    assert {(length, size) for length, size, _ in reader.batches} == {(1500, 4), (1500, 2), (2000, 3)}
    reader = Oracle()
    evaluate(reader, plan(batch_tokens=1))
    assert {size for _, size, _ in reader.batches} == {1}


@pytest.mark.parametrize("die_after", [0, 1, 3, 5])
def test_a_killed_run_goes_on_and_gives_the_same(tmp_path, die_after):
    planned = plan(tasks=("needle", "hops", "perplexity"), batch_tokens=3000)
    whole = evaluate(Oracle(), planned, tmp_path / "whole.jsonl")
    path = tmp_path / "killed.jsonl"
    reader = Oracle(die_after=die_after)
    with pytest.raises(KeyboardInterrupt):
        evaluate(reader, planned, path)
    assert reader.patterns == (None,) * 3
    path.write_bytes(path.read_bytes()[:-5])  # the kill came while a line was written
    results = ResultsFile(path, HEADER)
    assert results.dropped == (len(path.read_bytes().splitlines()) > 0 and die_after >= 0)
    reader = Oracle()
    assert run(reader, Corpus(reader), planned, results) == whole
    again = Oracle()
    assert evaluate(again, planned, path) == whole
    assert again.batches == []
    assert sorted(path.read_text().splitlines()) == sorted((tmp_path / "whole.jsonl").read_text().splitlines())


class Chooser(Oracle):
    """Spends pairs by what it reads; its `cost` knows only the most that there can be."""

    def __init__(self, **given):
        super().__init__(**given)
        self.last_pairs = None

    def read_many(self, prompts, *, answer_tokens=16):
        answers = super().read_many(prompts, answer_tokens=answer_tokens)
        self.last_pairs = None if self.patterns == (None,) * 3 else sum(map(sum, prompts)) // len(prompts) % 997
        return answers

    def read(self, tokens, **given):
        self.last_pairs = None if self.patterns == (None,) * 3 else sum(tokens) % 997
        return super().read(tokens, **given)


def test_spent_pairs_survive_a_kill_after_any_line(tmp_path):
    planned = plan(tasks=("needle", "perplexity"), lengths=(1500,), batch_tokens=3000)
    whole = evaluate(Chooser(), planned, tmp_path / "whole.jsonl")
    (sparse,) = [entry for entry in whole if entry["kind"] == "cost" and entry["row"] != "dense"]
    spent = [entry["spent_pairs"] for entry in whole if "spent_pairs" in entry]
    assert len(spent) == 2 * 3 + 2
    assert len(set(spent)) > 3
    assert sparse["kept_pairs"] == round(sum(spent) / len(spent))
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    for held in range(len(lines)):
        (tmp_path / "killed.jsonl").write_text("".join(lines[:held]))
        assert evaluate(Chooser(), planned, tmp_path / "killed.jsonl") == whole, held


def test_spent_pairs_of_more_samples_count_all_of_them(tmp_path):
    path = tmp_path / "results.jsonl"
    evaluate(Chooser(), plan(samples=1, batch_tokens=1), path)
    planned = plan(samples=2, batch_tokens=1)
    assert evaluate(Chooser(), planned, path) == evaluate(Chooser(), planned)


def test_patterns_are_tried_before_a_sample_is_built_or_a_file_begun(tmp_path):
    class Refuses(Oracle):
        def attend(self, patterns):
            super().attend(patterns)
            if "window(9)" in patterns:
                raise NotImplementedError("window(9) is not served")

    class Unread(Corpus):
        def from_paragraph(self, start, tokens):
            raise AssertionError("a sample was built")

    reader = Refuses()
    with pytest.raises(NotImplementedError, match="is not served"):
        plan(rows=("window(8)", "window(9)")).check(Unread(reader), reader)
    assert reader.patterns == (None,) * 3


def test_more_samples_go_on_from_fewer(tmp_path):
    path = tmp_path / "results.jsonl"
    evaluate(Oracle(), plan(samples=1), path)
    reader = Oracle()
    evaluate(reader, plan(samples=2), path)
    assert evaluate(Oracle(), plan(samples=2)) == evaluate(Oracle(), plan(samples=2), path)


def test_what_a_file_may_not_hold(tmp_path):
    path = tmp_path / "results.jsonl"
    evaluate(Oracle(), plan(), path)
    with pytest.raises(ValueError, match="holds results of another run: its seed is 0, this one's is 5"):
        ResultsFile(path, HEADER | {"seed": 5})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], '{"kind": "ans\n', *lines[3:]]))
    with pytest.raises(ValueError, match=r"results.jsonl, line 4: cannot be read as a result"):
        ResultsFile(path, HEADER)
    path.write_text("a letter to my aunt\n")
    with pytest.raises(ValueError, match="is not a results file"):
        ResultsFile(path, HEADER)
    assert path.read_text() == "a letter to my aunt\n"


@pytest.mark.parametrize(
    "change",
    [{"digest": None}, {"correct": "yes"}, {"kind": "letter"}, {"key": [["answer"]]}, {"key": None}, {"value": None}],
    ids=str,
)
def test_a_line_that_lacks_something_is_named_and_nothing_is_lost(tmp_path, change):
    path = tmp_path / "results.jsonl"
    evaluate(Oracle(), plan(), path)
    lines = path.read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if '"answer"' in line)
    entry = json.loads(lines[at]) | change
    lines[at] = json.dumps({name: value for name, value in entry.items() if value is not None}) + "\n"
    path.write_text("".join(lines))
    with pytest.raises(ValueError, match=rf"results.jsonl, line {at + 1}: cannot be read as a result"):
        ResultsFile(path, HEADER)
    assert path.read_text() == "".join(lines)
    path.write_text("".join([*lines[:at], *lines[at + 1 :]]))  # as the message advises
    assert evaluate(Oracle(), plan(), path) == evaluate(Oracle(), plan())


def test_answers_to_other_prompts_are_not_taken_over(tmp_path):
    path = tmp_path / "results.jsonl"
    evaluate(Oracle(), plan(), path)
    reader = Oracle()
    with pytest.raises(ValueError, match="holds an answer to another prompt"):
        run(reader, Corpus(reader, ["Another text altogether. " * 60] * 50), plan(), ResultsFile(path, HEADER))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("needle", "noodle")}, "unknown task 'noodle': there are needle, multi_key"),
        ({"lengths": (30_000,)}, "length 30,000 exceeds the model's context of 20,000 tokens"),
        ({"lengths": (19_990,)}, "length 19,990 and an answer of 32 tokens to needle exceed"),
        ({"lengths": (30,)}, "length must leave room for text"),
        ({"prompts": ("plain", "loud")}, "unknown prompt 'loud'"),
        ({"tasks": ("perplexity",), "lengths": (100,)}, "length of perplexity must be at least 128"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_is(changes, message):
    reader = Oracle()
    with pytest.raises(ValueError, match=message):
        evaluate(reader, plan(**changes))
    assert reader.batches == []


def compared(planned, reader, margin=None):
    return summarize(planned, evaluate(reader, planned), margin=margin)


def test_a_loss_is_told_with_its_p():
    summary = compared(plan(), Oracle(sparse=lambda right: ""), margin=0.02)
    (comparison,) = summary["comparisons"]
    assert (comparison["worse"], comparison["better"], comparison["n"]) == (12, 0, 12)
    assert comparison["p"] == pytest.approx(2 / 2**12)
    assert "0 of 12 right, dense 12: worse, 12 lost and 0 gained" in comparison["words"]
    assert summary["verdict"]["status"] == FAIL
    assert "worse than dense by 100.0%, more than 2.0%" in summary["verdict"]["reasons"][0]


def test_too_few_samples_are_inconclusive_and_name_the_margin():
    summary = compared(plan(), Oracle(), margin=0.02)
    assert summary["verdict"]["status"] == INCONCLUSIVE
    assert (
        "12 samples cannot tell a loss of 2.0% from none; the margin that they can detect is 22.1%"
        in (summary["verdict"]["reasons"][0])
    )
    assert compared(plan(), Oracle(), margin=0.25)["verdict"]["status"] == PASS


def test_near_chance_gives_no_verdict():
    class Blind(Oracle):
        def answer(self, text):
            return "no idea"

    summary = compared(plan(), Blind(), margin=0.5)
    (comparison,) = summary["comparisons"]
    assert comparison["floor"]
    assert "The dense model itself is near chance (0 of 12 right" in comparison["words"]
    assert "no verdict is given" in comparison["words"]
    assert summary["verdict"]["status"] == INCONCLUSIVE


def test_prompts_are_compared_on_the_same_samples():
    class Careless(Oracle):
        def answer(self, text):
            return super().answer(text) if "quote word for word" in text else "no idea"

    summary = compared(plan(prompts=("plain", "verify")), Careless())
    dense = next(advice for advice in summary["advice"] if advice["row"] == "dense")
    assert (dense["first"], dense["second"], dense["worse"], dense["better"], dense["n"]) == (
        "plain",
        "verify",
        0,
        12,
        12,
    )
    assert {score["accuracy"] for score in summary["scores"] if score["prompt"] == "verify"} == {1.0}


def test_places_are_compared_on_the_same_facts():
    class LostInTheMiddle(Oracle):
        def answer(self, text):
            at = text.index("The special number") / len(text)
            return super().answer(text) if at < 0.3 or at > 0.7 else "no idea"

    planned = plan(depths=(0.0, 0.5, 1.0), places=True)
    entries = [e for e in evaluate(LostInTheMiddle(), planned) if e["kind"] == "answer" and e["row"] == "dense"]
    assert len({tuple(entry["expected"]) for entry in entries}) == 4  # two lengths, two samples
    summary = summarize(planned, evaluate(LostInTheMiddle(), planned))
    advice = {a["second"]: a for a in summary["advice"] if a["row"] == "dense"}
    assert set(advice) == {"start", "end"}
    assert all((a["first"], a["better"], a["worse"], a["n"]) == ("middle", 4, 0, 4) for a in advice.values())


def test_perplexity_by_position():
    planned = plan(tasks=("perplexity",), lengths=(256,))
    summary = summarize(planned, evaluate(Oracle(), planned))
    tables = {table["row"]: table for table in summary["perplexity"]}
    assert tables["dense"]["perplexity"] == pytest.approx(7.389, abs=1e-3)
    assert tables["window(8)"]["times_dense"] == pytest.approx(2.718, abs=1e-3)
    assert [(part["start"], part["stop"]) for part in tables["dense"]["bins"]][:2] == [(1, 64), (64, 91)]
    assert summary["comparisons"] == []


def test_a_text_begins_as_the_tokenizer_begins_it():
    """One token fewer of the text, after a mark that is not scored."""

    class Marked(Oracle):
        def beginning(self):
            return [7]

    plain, marked = Oracle(), Marked()
    piece, begun = text_piece(Corpus(plain), 256, 0), text_piece(Corpus(marked), 256, 0)
    assert begun.tokens == (7, *piece.tokens[:-1])
    assert begun.bins == piece.bins


def test_a_summary_is_plain_data():
    summary = compared(plan(tasks=("needle", "perplexity")), Oracle(), margin=0.1)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
