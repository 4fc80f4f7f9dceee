"""Texts and questions that the package carries for the tasks; data/SOURCE.md names where each is from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files


def carried(name: str) -> str:
    """A file of the package's data as text."""
    return (files("sparse_attn") / "data" / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Passage:
    """A question of NQ-open, its accepted answers, and the passage that holds one of them."""

    question: str
    answers: tuple[str, ...]
    title: str
    text: str


@lru_cache(maxsize=1)
def passages() -> tuple[Passage, ...]:
    """400 questions with their passages, of those published with 'Lost in the Middle'."""
    rows = map(json.loads, carried("lost_in_the_middle_passages.jsonl").splitlines())
    return tuple(Passage(row["question"], tuple(row["answers"]), row["title"], row["text"].strip()) for row in rows)


@lru_cache(maxsize=1)
def key_value_pairs() -> tuple[tuple[str, str], ...]:
    """600 pairs of UUIDs, of those published with 'Lost in the Middle'."""
    pairs = (line.split("\t") for line in carried("lost_in_the_middle_keys.tsv").splitlines())
    return tuple((key, value) for key, value in pairs)


@lru_cache(maxsize=1)
def wikipedia_paragraphs() -> tuple[str, ...]:
    """120 paragraphs of XQuAD's English part."""
    return tuple(carried("xquad_paragraphs.txt").strip().split("\n\n"))


@dataclass(frozen=True)
class Story:
    """One bAbI question: the sentences before it, the question, its answer, and which sentences support it."""

    sentences: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...]


@lru_cache(maxsize=4)
def babi_stories(task: str) -> tuple[Story, ...]:
    """All questions of one carried bAbI file, such as ``qa1``, in the file's order."""
    stories: list[Story] = []
    sentences: dict[int, str] = {}
    for line in carried(f"babi_{task}.txt").splitlines():
        number, _, rest = line.partition(" ")
        if number == "1":
            sentences = {}
        if "\t" not in rest:
            sentences[int(number)] = rest
            continue
        question, answer, support = rest.split("\t")
        lines = list(sentences)
        told = tuple(lines.index(int(fact)) for fact in support.split())
        stories.append(Story(tuple(sentences.values()), question.strip(), answer, told))
    return tuple(stories)
