"""The tasks of the evaluation, one small file each: a seeded generator of prompts, and a scorer. Needs numpy at most."""

from __future__ import annotations

from . import (
    babi,
    citations,
    common_words,
    copying,
    frequent_words,
    key_value_retrieval,
    multi_document_qa,
    multi_key,
    multi_query,
    multi_value,
    needle,
    variable_tracking,
)
from .sample import PROMPTS, Request, Sample, Score, Task

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        needle,
        multi_key,
        multi_value,
        multi_query,
        variable_tracking,
        common_words,
        frequent_words,
        key_value_retrieval,
        multi_document_qa,
        babi,
        citations,
        copying,
    )
}

__all__ = ["PROMPTS", "TASKS", "Request", "Sample", "Score", "Task"]
