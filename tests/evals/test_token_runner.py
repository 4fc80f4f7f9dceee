"""Token-level tasks through the runner: a reader by rule is right everywhere, a guesser at chance, and reports take both."""

import numpy as np
import pytest
import torch

from sparse_attn.evals.comparison import Row
from sparse_attn.evals.results_file import ResultsFile
from sparse_attn.evals.summary import summarize
from sparse_attn.evals.token_runner import TokenCost, TokenModel, described, run_tokens, token_plan, token_task
from sparse_attn.reports.eval_html import render
from sparse_attn.reports.eval_markdown import render_markdown

TASKS = [token_task("recall", 4), token_task("multi_query_recall", 4), token_task("hop_chains", 2, chains=2)]


def by_rule(hops):
    """Reads the pairs at the beginning, and follows them from the token that is asked."""

    def answers(inputs, at):
        found = np.empty_like(at)
        for line, places in enumerate(at):
            pairs = dict(zip(inputs[line, 0:8:2].tolist(), inputs[line, 1:8:2].tolist(), strict=True))
            for index, place in enumerate(places):
                token = int(inputs[line, place])
                for _ in range(hops):
                    token = pairs[token]
                found[line, index] = token
        return found

    return answers


def guess(inputs, at):
    """A value of the example, whichever."""
    rows = np.arange(len(at))[:, None]
    return inputs[rows, 1 + 2 * ((rows + at) % 4)]


def models(first, second):
    return [
        TokenModel(Row("dense", None), first, lambda tokens: TokenCost(100, 100)),
        TokenModel(Row("window(8)", "window(8)"), second, lambda tokens: TokenCost(30, 100)),
    ]


def evaluate(given, tasks, examples=40, path=None, **options):
    plan = token_plan(given, tasks, (32, 64), examples)
    entries = run_tokens(given, tasks, plan, ResultsFile(path, {}), **options)
    return entries, summarize(plan, entries, margin=0.1, tasks=described(tasks))


def test_by_rule_is_right_and_a_guess_is_not():
    for task, hops in zip(TASKS, (1, 1, 2), strict=True):
        entries, summary = evaluate(models(by_rule(hops), guess), [task])
        right = {(score["row"], score["length"]): score for score in summary["scores"]}
        assert {right["dense", length]["accuracy"] for length in (32, 64, None)} == {1.0}
        assert right["window(8)", None]["accuracy"] < 0.6
        assert right["dense", None]["mean_value"] == 1.0
        assert summary["verdict"]["status"] == 1
        assert {entry["chance"] for entry in entries if entry["kind"] == "answer"} == {0.25 if hops == 1 else 0.5}


def test_a_model_at_chance_gives_no_verdict():
    _, summary = evaluate(models(guess, guess), TASKS[:1])
    assert "near chance" in summary["comparisons"][0]["words"]
    assert summary["verdict"]["status"] == 3


def test_examples_are_judged_by_one_question_and_valued_by_all():
    def first_only(inputs, at):
        return np.where(np.arange(at.shape[1]) == 0, by_rule(1)(inputs, at), -1)

    entries, _ = evaluate(models(first_only, first_only), TASKS[1:2])
    dense = [entry for entry in entries if entry["kind"] == "answer" and entry["row"] == "dense"]
    assert {entry["value"] for entry in dense} == {0.25}
    assert [entry["correct"] for entry in dense[:8]] == [True, False, False, False] * 2


def test_a_run_goes_on_and_gives_the_same(tmp_path):
    calls = []

    def counted(inputs, at):
        calls.append(len(at))
        return by_rule(1)(inputs, at)

    given = models(counted, counted)
    whole, _ = evaluate(given, TASKS[:2], path=tmp_path / "r.jsonl", batch_tokens=64 * 16)
    assert set(calls) == {32, 8, 16}
    lines = (tmp_path / "r.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "r.jsonl").write_text("".join(lines[: len(lines) // 2]))
    first = len(calls)
    again, _ = evaluate(given, TASKS[:2], path=tmp_path / "r.jsonl", batch_tokens=64 * 16)
    assert again == whole
    assert len(calls) - first < first


def test_the_reports_show_it():
    _, summary = evaluate(models(by_rule(1), guess), TASKS[:2])
    summary |= {"about": {"model": "trained from scratch", "text": "tokens", "date": "today"}, "failures": []}
    page, text = render(summary), render_markdown(summary)
    assert page.count("<img") == 2  # a Pareto picture each
    assert "## multi_query_recall, 4 pairs" in text
    assert "worse than dense by" in page


def test_a_torch_model_fits():
    model = torch.nn.Sequential(torch.nn.Embedding(8192, 4), torch.nn.Linear(4, 8192))

    def answers(inputs, at):
        with torch.inference_mode():
            return model(torch.from_numpy(inputs)).argmax(-1).gather(1, torch.from_numpy(at)).numpy()

    entries, _ = evaluate(models(answers, by_rule(1)), TASKS[:1], examples=8)
    assert sum(entry["kind"] == "answer" for entry in entries) == 2 * 2 * 8


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="unknown token-level task 'recal'"):
        token_task("recal", 4)
    with pytest.raises(ValueError, match="recall takes a number of pairs, got None"):
        token_task("recall")
    with pytest.raises(ValueError, match="copying takes no level, got 3"):
        token_task("copying", 3)
    with pytest.raises(ValueError, match=r"answers of dense must have shape \(32, 1\), got \(32,\)"):
        evaluate(models(lambda inputs, at: at[:, 0], guess), TASKS[:1], batch_tokens=1024)
