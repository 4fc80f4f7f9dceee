"""This project's tasks for lm-evaluation-harness, which reads this file beside the YAML files that name its functions.

Settings come in ``--metadata`` as JSON: ``max_seq_lengths`` (default 1024, 2048, 4096), ``depths`` (5), ``samples`` (1),
``difficulty`` (1), ``seed`` (0). The tokenizer that measures lengths is the model's own.
"""

from __future__ import annotations

import json
from typing import Any

import datasets

from sparse_attn.evals.corpus import Corpus
from sparse_attn.evals.plan import Plan, even_depths
from sparse_attn.evals.runner import plan_rows
from sparse_attn.evals.tasks import TASKS, Request, Sample


class _Side:
    """A tokenizer without a chat template: the harness puts its own around the prompt if it is told to."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def beginning(self) -> list[int]:
        return []  # the harness adds it where the model's tokenizer does

    def chat_frame(self) -> tuple[str, str]:
        return "", "\n\nAnswer:"


def load(name: str, **settings: Any) -> dict[str, datasets.Dataset]:
    """The samples of one task as a dataset."""
    tokenizer = _tokenizer(settings)
    lengths = tuple(settings.get("max_seq_lengths", (1024, 2048, 4096)))
    plan = Plan(
        (name,), lengths, even_depths(int(settings.get("depths", 5))), int(settings.get("samples", 1)), plan_rows([]),
        difficulty=int(settings.get("difficulty", 1)), seed=int(settings.get("seed", 0)),
    )  # fmt: skip
    corpus = Corpus(_Side(tokenizer))
    rows = []
    for length in lengths:
        for group in plan.requests(name, length):
            for request in group:
                sample = TASKS[name].sample(corpus, request)
                rows.append(
                    {
                        "input": tokenizer.decode(list(sample.tokens)),
                        "target": ", ".join(sample.expected),
                        "sample": json.dumps(
                            {
                                "task": name,
                                "expected": sample.expected,
                                "choices": sample.choices,
                                "extra": sample.extra,
                            }
                        ),
                    }
                )
    return {"test": datasets.Dataset.from_list(rows)}


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The task's own score, and whether all that was asked for is right."""
    told = json.loads(doc["sample"])
    sample = Sample(
        told["task"], Request(0), (), (), (), "", tuple(told["expected"]), choices=tuple(told["choices"]),
        extra=told["extra"],
    )  # fmt: skip
    judged = TASKS[told["task"]].judge(sample, results[0])
    return {"value": judged.value, "correct": float(judged.correct)}


def _tokenizer(settings: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    name = next((settings[key] for key in ("tokenizer", "pretrained") if settings.get(key)), "default")
    if name in ("default", "gemma3-270m") or str(name).endswith(".gguf"):
        from sparse_attn.hf import load_model

        return load_model(None if name == "default" else name)[1]
    return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
