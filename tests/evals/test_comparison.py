"""The runner against a reader made of nothing: what is asked of it, in which order, and what is made of its answers."""

import math
from dataclasses import dataclass

import pytest

from sparse_attn.evals.comparison import Row, compare, needle_prompts

TEXT = [f"Paragraph {number} of a long story." for number in range(200)]
DEPTHS = (0.2, 0.8)


@dataclass
class Reading:
    answer: str
    prefill_seconds: float
    surprise: float
    scored_tokens: int

    @property
    def surprise_by_part(self):
        return (self.surprise,)


@dataclass
class Cost:
    kept_pairs: int = 3
    dense_pairs: int = 10
    cache_bytes: int = 4
    dense_cache_bytes: int = 8


class Parrot:
    """Finds every needle while dense, none while sparse."""

    layers = 3
    context = 2000
    last_pairs = None

    def __init__(self):
        self.patterns = None
        self.log = []

    def encode(self, text):
        return [ord(character) for character in text]

    def chat_frame(self):
        return "<", ">"

    def attend(self, patterns):
        self.patterns = tuple(patterns)
        self.log.append(self.patterns)

    def read(self, tokens, *, scored=(), answer_tokens=16):
        text = "".join(map(chr, tokens))
        count = sum(map(len, scored))
        answer = text if self.patterns == (None,) * 3 else "no idea"
        return Reading(answer, float(len(self.log)), 2.0 * count, count)

    def cost(self, patterns, tokens):
        return Cost()


ROWS = (Row("dense", None), Row("sparse", "window(8)", (1,)))


def test_pairs_that_were_spent_count_instead_of_the_most_that_could_be():
    class Chooser(Parrot):
        @property
        def last_pairs(self):
            return None if self.patterns == (None,) * 3 else 4 + len(self.log)

    parrot = Chooser()
    prompts = needle_prompts(parrot, TEXT, [500], DEPTHS)
    kept = {cell.row: cell.kept_pairs for cell in compare(parrot, ROWS, prompts, DEPTHS)}
    assert kept == {"dense": 3, "sparse": 6}  # twice 4 and its two calls of `attend`


def test_a_row_is_read_from_its_length_on():
    rows = [Row("dense", None), Row("long", "window(8)", from_length=600)]
    parrot = Parrot()
    prompts = needle_prompts(parrot, TEXT, [500, 600], DEPTHS)
    cells = [(cell.row, cell.length) for cell in compare(parrot, rows, prompts, DEPTHS)]
    assert cells == [("dense", 500), ("dense", 600), ("long", 600)]


def test_every_row_reads_every_prompt():
    reader, seen = Parrot(), []
    prompts = needle_prompts(reader, TEXT, [500, 700], DEPTHS)
    cells = list(compare(reader, ROWS, prompts, DEPTHS, lambda row, length: seen.append((row.name, length))))
    assert [(cell.row, cell.length) for cell in cells] == [
        ("dense", 500), ("sparse", 500), ("dense", 700), ("sparse", 700),
    ]  # fmt: skip
    assert seen == [(cell.row, cell.length) for cell in cells for _ in DEPTHS]
    assert [[needle.found for needle in cell.needles] for cell in cells] == [[True, True], [False, False]] * 2
    assert all(cell.perplexity == pytest.approx(math.exp(2)) for cell in cells)
    assert all(cell.text_tokens == sum(map(len, prompts[cell.length][0].text)) for cell in cells)
    assert len({prompt.secret for group in prompts.values() for prompt in group}) == 4
    assert reader.log == [(None,) * 3, ("window(8)", None, "window(8)")] * 2 + [(None,) * 3]


def test_an_interrupted_run_leaves_the_model_as_it_came():
    class Tired(Parrot):
        def read(self, tokens, *, scored=(), answer_tokens=16):
            raise KeyboardInterrupt

    reader = Tired()
    with pytest.raises(KeyboardInterrupt):
        list(compare(reader, ROWS[1:], needle_prompts(reader, TEXT, [500], DEPTHS), DEPTHS))
    assert reader.patterns == (None,) * 3


def test_a_prompt_must_fit_the_context_with_its_answer():
    with pytest.raises(
        ValueError, match=r"length 1,990 and an answer of \d+ tokens exceed the model's context of 2,000"
    ):
        needle_prompts(Parrot(), TEXT, [1990], DEPTHS)


def test_a_row_names_layers_of_the_model():
    with pytest.raises(ValueError, match=r"row 'x' keeps full attention in layers \[7\], but the model's are 0 to 2"):
        Row("x", "window(8)", (1, 7)).patterns(3)
