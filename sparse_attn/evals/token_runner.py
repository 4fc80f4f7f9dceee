"""Token-level tasks read by models that were trained on them, kept and summed up as the tasks in text are.

A model is a function from tokens to answers, so that anything fits: a torch module needs

    def answers(inputs, at):
        tokens, at = torch.from_numpy(inputs), torch.from_numpy(at)
        with torch.inference_mode():
            return model(tokens).argmax(-1).gather(1, at).numpy()

Difficulty (pairs, hops) is part of a task's name, so that reports show each by itself, by length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .comparison import Row
from .plan import Plan
from .reader import Cost
from .results_file import Entry, Key, ResultsFile
from .tasks.token_level import IGNORED, TOKEN_TASKS, TokenBatch, Tokens

Answers = Callable[
    [Tokens, Tokens], Tokens
]  # [examples, tokens], and [examples, questions]: the tokens that follow these
LEVELS = {"recall": "pairs", "multi_query_recall": "pairs", "hop_chains": "hops"}  # copying has none
SOURCE = "Arora et al. 2023, arXiv:2312.04927 (recall); token-level, no language"


@dataclass(frozen=True)
class TokenTask:
    """One task at one level.

    Attributes:
        name: As reports show it.
        draw: ``(examples, tokens, seed)`` to the examples; every example asks the same number of questions.
        summary, source, level: For people.
    """

    name: str
    draw: Callable[[int, int, int], TokenBatch]
    summary: str
    source: str = SOURCE
    level: str = "one level"


@dataclass(frozen=True)
class TokenCost:
    """What a trained model's reading costs, in all layers together; see `Cost`."""

    kept_pairs: int
    dense_pairs: int
    cache_bytes: int = 0
    dense_cache_bytes: int = 0


@dataclass(frozen=True)
class TokenModel:
    """A trained model, one row of a report.

    Attributes:
        row: Its name and pattern; the first row is the one that others are compared with.
        answers: What it answers.
        cost: What reading so many tokens costs, e.g. a `TokenCost`.
    """

    row: Row
    answers: Answers
    cost: Callable[[int], Cost]


def token_task(name: str, level: int | None = None, **options: Any) -> TokenTask:
    """One of `TOKEN_TASKS` with so many pairs or hops.

    Raises:
        ValueError: an unknown task, or a level where there is none or the other way round.

    >>> token_task("hop_chains", 2).name
    'hop_chains, 2 hops'
    """
    if name not in TOKEN_TASKS:
        raise ValueError(f"unknown token-level task {name!r}: there are {', '.join(TOKEN_TASKS)}")
    if (name in LEVELS) != (level is not None):
        raise ValueError(f"{name} takes {'a number of ' + LEVELS[name] if name in LEVELS else 'no level'}, got {level}")
    make, given = TOKEN_TASKS[name], () if level is None else (level,)
    words = "one level" if level is None else f"{level} {LEVELS[name]}"
    return TokenTask(
        name if level is None else f"{name}, {words}",
        lambda examples, tokens, seed: make(examples, tokens, *given, seed=seed, **options),
        f"{name.replace('_', ' ')} among bare tokens", level=words,
    )  # fmt: skip


def token_plan(
    models: Sequence[TokenModel], tasks: Sequence[TokenTask], lengths: Sequence[int], examples: int, seed: int = 0
) -> Plan:
    """What `run_tokens` reads, as `summarize` wants to know it."""
    rows = tuple(model.row for model in models)
    return Plan(tuple(task.name for task in tasks), tuple(lengths), (), examples, rows, seed=seed)


def described(tasks: Sequence[TokenTask]) -> list[dict[str, Any]]:
    """The tasks as reports show them; `summarize` takes it."""
    return [
        {"name": task.name, "summary": task.summary, "source": task.source, "difficulty": 1,
         "difficulty_words": task.level, "has_depth": False}
        for task in tasks
    ]  # fmt: skip


def run_tokens(
    models: Sequence[TokenModel],
    tasks: Sequence[TokenTask],
    plan: Plan,
    results: ResultsFile,
    *,
    batch_tokens: int = 65536,
) -> list[Entry]:
    """Read what the results file does not hold yet: every model the same examples.

    An example counts as right if the one of its questions whose turn it is was answered right, so that samples are
    independent; its `value` is the share of all of its questions, which Zoology counts.

    Args:
        batch_tokens: The most tokens given to a model at once; at least one example is.

    Raises:
        ValueError: what a task refuses, or answers of another shape than the questions.
    """
    keys: list[Key] = []
    for length in sorted(plan.lengths):
        for model in models:
            key: Key = ("cost", model.row.name, length)
            keys.append(key)
            if key not in results:
                cost = model.cost(length)
                results.add([(key, {"kind": "cost", "row": model.row.name, "length": length,
                    **{name: int(getattr(cost, name)) for name in
                       ("kept_pairs", "dense_pairs", "cache_bytes", "dense_cache_bytes")}})])  # fmt: skip
        for task in tasks:
            batch = task.draw(plan.samples, length, plan.seed)
            for model in models:
                keys += _answered(model, task, batch, length, results, max(1, batch_tokens // length))
    return [results[key] for key in keys]


def _answered(
    model: TokenModel, task: TokenTask, batch: TokenBatch, length: int, results: ResultsFile, size: int
) -> list[Key]:
    asked = batch.labels != IGNORED
    at = np.nonzero(asked)[1].reshape(len(batch.labels), -1)
    expected = np.take_along_axis(batch.labels, at, 1)
    keys: list[Key] = []
    for start in range(0, len(at), size):
        part = range(start, min(start + size, len(at)))
        names: list[Key] = [
            ("answer", model.row.name, task.name, length, 1, None, number, "plain", False) for number in part
        ]
        keys += names
        if all(name in results for name in names):
            continue
        came = np.asarray(model.answers(batch.inputs[part.start : part.stop], at[part.start : part.stop]))
        if came.shape != (len(part), at.shape[1]):
            raise ValueError(
                f"answers of {model.row.name} must have shape {(len(part), at.shape[1])}, got {came.shape}"
            )
        results.add(
            [
                (name, _entry(name, batch, number, expected[number], came[row]))
                for row, (name, number) in enumerate(zip(names, part, strict=True))
                if name not in results
            ]
        )
    return keys


def _entry(name: Key, batch: TokenBatch, number: int, expected: Tokens, came: Tokens) -> Entry:
    _, row, task, length, *_ = name
    turn = number % len(expected)
    right = came == expected
    return {
        "kind": "answer", "row": row, "task": task, "length": length, "depth": None, "difficulty": 1, "number": number,
        "prompt": "plain", "fixed": False, "digest": hashlib.sha256(batch.inputs[number].tobytes()).hexdigest()[:16],
        "tokens": int(batch.inputs.shape[1]), "facts": [], "told": [], "question": f"question {turn + 1} of {len(expected)}",
        "expected": [str(expected[turn])], "chance": batch.chance, "answer": str(came[turn]), "value": float(right.mean()),
        "correct": bool(right[turn]), "details": {"questions": len(expected), "right": int(right.sum())},
    }  # fmt: skip
