"""What an evaluation reads: tasks at lengths and depths, the same samples through every row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from .comparison import Row
from .corpus import Corpus
from .reader import Reader
from .tasks import PROMPTS, TASKS, Request
from .tasks.perplexity import NAME as PERPLEXITY
from .tasks.perplexity import text_piece

PLACES = {"start": 0.0, "middle": 0.5, "end": 1.0}
TASK_NAMES = (*TASKS, PERPLEXITY)


@dataclass(frozen=True)
class Plan:
    """An evaluation.

    Attributes:
        tasks: Names, `perplexity` among them if wanted.
        lengths: Tokens of the prompts.
        depths: Where facts stand, of tasks that have a depth.
        samples: Of each task, length and depth.
        rows: Ways to attend; the first is the one that others are compared with.
        difficulty: Of every task that has so many levels; others take their last one.
        prompts: Wordings of the question.
        places: The depths are places to be compared with each other: on the same facts in the same text.
        seed: Of all samples.
        batch_tokens: The most tokens of prompts that are read at once; at least one prompt is.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int
    rows: tuple[Row, ...]
    difficulty: int = 1
    prompts: tuple[str, ...] = ("plain",)
    places: bool = False
    seed: int = 0
    batch_tokens: int = 8192

    def check(self, corpus: Corpus, reader: Reader) -> None:
        """See that everything can be read before anything is: names, lengths, then every row's patterns, then the samples.

        Each row's patterns are put in force once, and one sample of each kind is built. The reader attends as the model
        came when this ends, however it ends.

        Raises:
            ValueError: an unknown task or prompt, a length beyond the model's context, a layer that it does not have, a
                pattern that it cannot attend through, or what a task refuses.
            NotImplementedError: a pattern that it cannot attend through.
        """
        context = reader.context
        for name in self.tasks:
            if name not in TASK_NAMES:
                raise ValueError(f"unknown task {name!r}: there are {', '.join(TASK_NAMES)}")
        for prompt in self.prompts:
            if prompt not in PROMPTS:
                raise ValueError(f"unknown prompt {prompt!r}: there are {', '.join(PROMPTS)}")
        longest = max(self.lengths)
        if longest > context:
            raise ValueError(f"length {longest:,} exceeds the model's context of {context:,} tokens")
        self._try_rows(reader)
        for name, length in product(self.tasks, self.lengths):
            if name == PERPLEXITY:
                text_piece(corpus, length, 0, seed=self.seed)
                continue
            for group in self.requests(name, length):
                sample = TASKS[name].sample(corpus, group[0])
                if length + sample.answer_tokens > context:
                    raise ValueError(f"length {length:,} and an answer of {sample.answer_tokens} tokens to {name} exceed the "
                                     f"model's context of {context:,} tokens")  # fmt: skip

    def _try_rows(self, reader: Reader) -> None:
        try:
            for row in self.rows:
                reader.attend(row.patterns(reader.layers))
        finally:
            reader.attend([None] * reader.layers)

    def requests(self, name: str, length: int) -> Iterator[list[Request]]:
        """A task's samples of one length, in groups that have the same wording and so much to answer."""
        task = TASKS[name]
        depths: Sequence[float | None] = self.depths if task.has_depth else (None,)
        difficulty = min(self.difficulty, len(task.difficulties))
        for prompt in self.prompts:
            yield [
                Request(length, depth, difficulty, number, self.seed, prompt, self.places)
                for number in range(self.samples)
                for depth in depths
            ]

    def batches(self, name: str, length: int) -> Iterator[list[Request]]:
        """The same, no more of them at once than `batch_tokens` allows."""
        size = max(1, self.batch_tokens // length)
        for group in self.requests(name, length):
            for start in range(0, len(group), size):
                yield group[start : start + size]

    @property
    def readings(self) -> list[int]:
        """The length of every prompt that will be read, for a progress bar."""
        found: list[int] = []
        for length, name in product(sorted(self.lengths), self.tasks):
            count = self.samples if name == PERPLEXITY else sum(map(len, self.requests(name, length)))
            found += [length] * (count * len(self.rows))
        return found


def even_depths(count: int) -> tuple[float, ...]:
    """That many depths from the text's beginning to its end; one alone is the middle.

    >>> even_depths(5), even_depths(1)
    ((0.0, 0.25, 0.5, 0.75, 1.0), (0.5,))
    """
    return (0.5,) if count == 1 else tuple(number / (count - 1) for number in range(count))
