"""Reads every sample of a plan through every row, and keeps what came in a results file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from .comparison import Row
from .corpus import Corpus
from .plan import Plan
from .reader import Reader
from .results_file import Entry, Key, ResultsFile
from .tasks import TASKS, Request, Sample
from .tasks.perplexity import NAME as PERPLEXITY
from .tasks.perplexity import TextPiece, text_piece

Announce = Callable[[str, int], None]


def run(
    reader: Reader,
    corpus: Corpus,
    plan: Plan,
    results: ResultsFile,
    on_reading: Announce = lambda what, tokens: None,
) -> list[Entry]:
    """Read what the results file does not hold yet, shortest prompts first.

    Args:
        on_reading: Told what is read next and how many prompts' tokens that is, for a progress bar; also of what is
            there already.

    Returns:
        The plan's results, in the plan's order, whatever else the file holds: the same whether or not a run was killed.

    Raises:
        ValueError: what `Plan.check` refuses, or results of the file that are of other prompts.
        NotImplementedError: a pattern that the model cannot attend through.

    The reader attends as the model came when this ends, however it ends. A batch of which a part is missing is read
    again as a whole, since a prompt's neighbours in a batch change the last digits of what a model computes.
    """
    plan.check(corpus, reader)
    keys: list[Key] = []
    try:
        for length in sorted(plan.lengths):
            keys += _costs(reader, plan, results, length)
            for name in plan.tasks:
                if name == PERPLEXITY:
                    for number in range(plan.samples):
                        piece = text_piece(corpus, length, number, seed=plan.seed)
                        keys += _surprise(reader, plan, results, piece, on_reading)
                    continue
                for requests in plan.batches(name, length):
                    samples = [TASKS[name].sample(corpus, request) for request in requests]
                    for row in plan.rows:
                        keys += _answers(reader, row, results, samples, on_reading)
    finally:
        reader.attend([None] * reader.layers)
    return _with_spent_pairs([results[key] for key in keys])


def _with_spent_pairs(entries: list[Entry]) -> list[Entry]:
    """Costs of rows that chose by content: the mean of what the answers and texts of this plan spent, not the bound."""
    spent: dict[tuple[str, int], list[int]] = {}
    for entry in entries:
        if "spent_pairs" in entry:
            spent.setdefault((entry["row"], entry["length"]), []).append(entry["spent_pairs"])
    return [
        {**entry, "kept_pairs": round(sum(found) / len(found))}
        if entry["kind"] == "cost" and (found := spent.get((entry["row"], entry["length"])))
        else entry
        for entry in entries
    ]


def _costs(reader: Reader, plan: Plan, results: ResultsFile, length: int) -> list[Key]:
    keys: list[Key] = [("cost", row.name, length) for row in plan.rows]
    missing: list[tuple[Key, Entry]] = []
    for key, row in zip(keys, plan.rows, strict=True):
        if key in results:
            continue
        cost = reader.cost(row.patterns(reader.layers), length)
        missing.append(
            (key, {"kind": "cost", "row": row.name, "length": length, "kept_pairs": cost.kept_pairs,
                   "dense_pairs": cost.dense_pairs, "cache_bytes": cost.cache_bytes,
                   "dense_cache_bytes": cost.dense_cache_bytes})
        )  # fmt: skip
    if missing:
        results.add(missing)
    return keys


def _answers(
    reader: Reader, row: Row, results: ResultsFile, samples: Sequence[Sample], on_reading: Announce
) -> list[Key]:
    keys = [answer_key(row, sample.task, sample.request) for sample in samples]
    first = samples[0]
    on_reading(
        f"{first.task}, {first.request.length:,} tokens, {row.name}", sum(len(sample.tokens) for sample in samples)
    )
    for key, sample in zip(keys, samples, strict=True):
        _check_digest(results, key, sample.tokens)
    if all(key in results for key in keys):
        return keys
    reader.attend(row.patterns(reader.layers))
    answers: dict[int, tuple[str, int | None]] = {}
    for size in sorted({len(sample.tokens) for sample in samples}):  # all of one length, mostly
        group = [index for index, sample in enumerate(samples) if len(sample.tokens) == size]
        prompts = [samples[index].tokens for index in group]
        wrote = reader.read_many(prompts, answer_tokens=first.answer_tokens)
        answers.update({index: (text, reader.last_pairs) for index, text in zip(group, wrote, strict=True)})
    results.add(
        [
            (key, _entry(row, sample, *answers[index]))
            for index, (key, sample) in enumerate(zip(keys, samples, strict=True))
            if key not in results
        ]
    )
    return keys


def answer_key(row: Row, task: str, request: Request) -> Key:
    """What tells one answer from all others of a file."""
    return (
        "answer", row.name, task, request.length, request.difficulty, request.depth, request.number, request.prompt,
        request.fixed,
    )  # fmt: skip


def _entry(row: Row, sample: Sample, answer: str, spent: int | None) -> Entry:
    request, judged = sample.request, TASKS[sample.task].judge(sample, answer)
    return {
        "kind": "answer",
        "row": row.name,
        "task": sample.task,
        "length": request.length,
        "depth": request.depth,
        "difficulty": request.difficulty,
        "number": request.number,
        "prompt": request.prompt,
        "fixed": request.fixed,
        "digest": _digest(sample.tokens),
        "tokens": len(sample.tokens),
        "facts": [[fact.start, fact.stop] for fact in sample.facts],
        "told": list(sample.told),
        "question": sample.question,
        "expected": list(sample.expected),
        "chance": sample.chance,
        "answer": answer,
        "value": judged.value,
        "correct": judged.correct,
        "details": dict(judged.details),
        **_spent(spent),
    }


def _spent(pairs: int | None) -> Entry:
    return {} if pairs is None else {"spent_pairs": pairs}


def _surprise(reader: Reader, plan: Plan, results: ResultsFile, piece: TextPiece, on_reading: Announce) -> list[Key]:
    keys: list[Key] = []
    for row in plan.rows:
        key: Key = ("surprise", row.name, piece.length, piece.number)
        keys.append(key)
        on_reading(f"{PERPLEXITY}, {piece.length:,} tokens, {row.name}", piece.length)
        _check_digest(results, key, piece.tokens)
        if key in results:
            continue
        reader.attend(row.patterns(reader.layers))
        reading = reader.read(piece.tokens, scored=piece.bins, answer_tokens=0)
        entry: dict[str, Any] = {
            "kind": "surprise", "row": row.name, "length": piece.length, "number": piece.number,
            "digest": _digest(piece.tokens), "bins": [[part.start, part.stop] for part in piece.bins],
            "surprise": list(reading.surprise_by_part), **_spent(reader.last_pairs),
        }  # fmt: skip
        results.add([(key, entry)])
    return keys


def _check_digest(results: ResultsFile, key: Key, tokens: Sequence[int]) -> None:
    if key in results and results[key]["digest"] != _digest(tokens):
        raise ValueError(f"{results.path} holds an answer to another prompt under the same name ({', '.join(map(str, key))}): "
                         "the tasks or the tokenizer have changed since; name another file")  # fmt: skip


def _digest(tokens: Sequence[int]) -> str:
    return hashlib.sha256(repr(tuple(tokens)).encode()).hexdigest()[:16]


def plan_rows(patterns: Sequence[str], full_layers: Sequence[int] = ()) -> tuple[Row, ...]:
    """Dense, then each pattern; named by what they are.

    >>> [row.name for row in plan_rows(["window(8)"], [0, 3])]
    ['dense', 'window(8), full in layers 0, 3']
    """
    layers = tuple(sorted(full_layers))
    ending = f", full in layers {', '.join(map(str, layers))}" if layers else ""
    return (Row("dense", None), *(Row(pattern + ending, pattern, layers) for pattern in dict.fromkeys(patterns)))
