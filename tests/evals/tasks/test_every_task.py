"""What holds of every task: exact lengths, depth, no leak, equal seeds, an oracle at 100 % and a guesser at chance."""

import hashlib
import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest

from sparse_attn.evals.corpus import Corpus
from sparse_attn.evals.tasks import TASKS, Request

from .. import oracle
from ..sides import Letters, Words

WORDS = Words()
CORPUS = Corpus(WORDS)
LEVELS = [(name, level) for name, task in TASKS.items() for level in range(1, len(task.difficulties) + 1)]
LEVEL_IDS = [f"{name}-{level}" for name, level in LEVELS]
DEEP = [name for name, task in TASKS.items() if task.has_depth]


def ask(name, corpus=CORPUS, **wanted):
    return TASKS[name].sample(corpus, Request(**({"length": 3000} | wanted)))


def words(tokens):
    return WORDS.text(tokens)


def prompt_of(sample):
    return words(sample.tokens).removeprefix("<user>").removesuffix("<model>")


@pytest.mark.parametrize(("name", "level"), LEVELS, ids=LEVEL_IDS)
def test_an_oracle_that_reads_the_prompt_is_always_right(name, level):
    for number, depth in enumerate((0.0, 0.3, 0.7, 1.0)):
        sample = ask(name, difficulty=level, depth=depth, number=number)
        assert TASKS[name].judge(sample, oracle.answer(prompt_of(sample))).correct, sample.question


@pytest.mark.parametrize(("name", "level"), LEVELS, ids=LEVEL_IDS)
def test_a_guesser_scores_chance(name, level):
    guesses = random.Random(0)
    right = total = 0
    chances = []
    for number in range(12):
        sample = ask(name, difficulty=level, number=number)
        chances.append(sample.chance)
        for _ in range(50):
            pool = sample.choices or ("1234567", "89")
            guess = guesses.sample(pool, min(len(pool), len(sample.expected) if sample.chance else 1))
            right += TASKS[name].judge(sample, ", ".join(guess)).correct
            total += 1
    chance = sum(chances) / len(chances)
    assert abs(right / total - chance) <= 4 * math.sqrt(chance * (1 - chance) / total) + 0.005


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [2048, 3001, 6000])
def test_the_length_is_the_one_asked_for(name, length):
    assert len(ask(name, length=length).tokens) == length


@pytest.mark.parametrize("name", TASKS)
def test_the_length_is_exact_with_one_token_a_character_too(name):
    assert len(ask(name, Corpus(Letters()), length=12_000).tokens) == 12_000


@pytest.mark.parametrize("name", DEEP)
def test_facts_stand_at_the_depth_asked_for(name):
    length = 8000
    middles = []
    for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
        facts = ask(name, length=length, depth=depth, fixed=True).facts
        middles.append(sum(fact.start + len(fact) / 2 for fact in facts) / len(facts) / length)
    assert all(low <= high + 0.02 for low, high in pairwise(middles))
    # Facts that belong together are spread over a half or a quarter of the text, and none passes its ends.
    slack = {"babi": 0.3, "citations": 0.3, "multi_value": 0.15, "multi_query": 0.15, "hops": 0.15}.get(name, 0.05)
    for depth, middle in zip((0.0, 0.25, 0.5, 0.75, 1.0), middles, strict=True):
        assert abs(middle - depth) <= slack + 0.05, middles


@pytest.mark.parametrize(("name", "level"), LEVELS, ids=LEVEL_IDS)
def test_facts_are_where_they_are_said_to_be_and_nowhere_else(name, level):
    for number in range(4):
        sample = ask(name, difficulty=level, number=number, depth=0.4)
        told = [words(sample.tokens[fact.start : fact.stop]) for fact in sample.facts]
        assert len(told) == len(sample.told)
        if name == "citations":
            assert all(fact.partition("] ")[2] in text for fact, text in zip(sample.told, told, strict=True))
        else:
            assert all(fact in text for fact, text in zip(sample.told, told, strict=True))
        if name in ("babi", "common_words", "frequent_words", "hops"):
            continue  # their answers are words that stand in many places; only rules tell the right ones
        inside = {position for fact in sample.facts for position in fact}
        outside = words(token for position, token in enumerate(sample.tokens) if position not in inside)
        for expected in sample.expected:
            if name == "citations" and not expected.isdigit():
                continue  # a person or a town stands in two facts of its chain
            assert expected.lower() not in outside.lower(), expected


@pytest.mark.parametrize("name", TASKS)
def test_samples_differ_by_number_seed_and_depth_but_not_by_prompt(name):
    base = Request(length=3000, depth=0.3)
    first = TASKS[name].sample(CORPUS, base)
    assert TASKS[name].sample(CORPUS, base) == first
    for change in ({"number": 1}, {"seed": 1}):
        assert TASKS[name].sample(CORPUS, replace(base, **change)).tokens != first.tokens
    checked = TASKS[name].sample(CORPUS, replace(base, prompt="verify"))
    assert checked.expected == first.expected
    assert "quote word for word" in words(checked.tokens)
    assert len(checked.tokens) == 3000


@pytest.mark.parametrize("name", DEEP)
def test_places_can_be_compared_on_the_same_facts(name):
    samples = [ask(name, depth=depth, fixed=True) for depth in (0.0, 0.5, 1.0)]
    assert len({sample.expected for sample in samples}) == 1
    assert len({sample.question for sample in samples}) == 1
    assert len({sample.tokens for sample in samples}) == 3


# Taken from one machine; any other must give the same.
DIGESTS = {
    "needle": "a4bc999de7dbab05",
    "multi_key": "39b24e7c4a0ded78",
    "multi_value": "4bf5132164eb37d0",
    "multi_query": "afe301e863463ea0",
    "hops": "6fe63450a0d94e52",
    "common_words": "6543cd9c69d393ad",
    "frequent_words": "d5fb189be67f2b51",
    "kv_retrieval": "06df800808180793",
    "multi_document_qa": "655c102c3b9c9899",
    "babi": "7aadd6c4ce751af2",
    "citations": "ca32d01aee651028",
    "copying": "c0e753e2da251651",
}


def digest(name):
    sample = ask(name, Corpus(Letters()), length=12_000, depth=0.5, seed=7)
    return hashlib.sha256(Letters().text(sample.tokens).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", TASKS)
def test_equal_seeds_give_equal_prompts_on_any_machine(name):
    assert digest(name) == DIGESTS[name]


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        (
            "needle",
            {"difficulty": 3},
            r"difficulty of needle must be from 1 to 2 \(a seven-digit number, a UUID\), got 3",
        ),
        ("hops", {"difficulty": 0}, "difficulty of hops must be from 1 to 4"),
        ("needle", {"depth": 1.5}, "depth of needle must be from 0 to 1, got 1.5"),
        ("needle", {"depth": None}, "depth of needle must be from 0 to 1, got None"),
        ("needle", {"prompt": "shout"}, "prompt must be one of plain, verify, got 'shout'"),
        ("needle", {"length": 30}, "length must leave room for text"),
        ("needle", {"length": 300_000}, "the text has"),
        ("multi_document_qa", {"length": 300_000}, "length must be at most"),
        ("citations", {"length": 300_000}, "length must be at most"),
        ("citations", {"length": 200}, "length must be larger"),
        ("common_words", {"length": 100}, "length must be at least"),
        ("kv_retrieval", {"length": 60}, "length must be at least"),
    ],
)
def test_what_cannot_be_built_is_refused(name, request_, message):
    with pytest.raises(ValueError, match=message):
        ask(name, **request_)
