"""Scorers on answers made by hand: right, wrong, and nearly right."""

import pytest

from sparse_attn.evals.tasks import TASKS, Request, Sample
from sparse_attn.evals.tasks.multi_document_qa import normalized
from sparse_attn.evals.tasks.sample import final_answer


def sample(task, *expected, prompt="plain", choices=(), **extra):
    request = Request(1000, prompt=prompt)
    return Sample(task, request, (), (), (), "?", expected, choices=choices, extra=extra)


def value(task, answer, *expected, **options):
    return TASKS[task].judge(sample(task, *expected, **options), answer).value


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("The number is 4829173.", ("4829173",), 1.0),
        ("4829174", ("4829173",), 0.0),
        ("482 9173", ("4829173",), 0.0),
        ("", ("4829173",), 0.0),
        ("ABCDE, FGHJK", ("abcde", "FGHJK"), 1.0),
        ("abcde", ("ABCDE", "FGHJK"), 0.5),
        ("1 and 22 and 333", ("22", "333", "4444", "55555"), 0.5),
    ],
)
def test_string_match_counts_the_share_of_what_is_named(answer, expected, score):
    assert value("needle", answer, *expected) == score


def test_others_that_are_named_are_counted():
    given = sample("multi_key", "11", choices=("11", "22", "33"))
    judged = TASKS["multi_key"].judge(given, "11 or 22 or 33")
    assert (judged.value, judged.details["also_named"]) == (1.0, 2)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("It was the Wilhelm Conrad Röntgen, in 1901", 1.0),
        ("wilhelm conrad röntgen!", 1.0),
        ("Wilhelm-Conrad Röntgen", 0.0),  # the source's normalisation joins hyphenated words
        ("Conrad Röntgen", 0.0),
        ("W. C. Röntgen", 0.0),
    ],
)
def test_best_subspan_match(answer, score):
    assert value("multi_document_qa", answer, "Wilhelm Conrad Röntgen", "Marie") == score


def test_normalisation_is_that_of_squad():
    assert normalized("  The Cat, an Apple & a dog. ") == "cat apple dog"


ROOMS = ("bathroom", "garden", "office")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("garden", 1.0),
        ("The garden.", 1.0),
        ("Garden. Then the office.", 1.0),  # only the first sentence counts
        ("The garden or the office", 0.0),
        ("gardens", 0.0),
        ("In Mary's office.", 0.0),
        ("", 0.0),
    ],
)
def test_babi_wants_the_one_word_in_the_first_sentence(answer, score):
    assert value("babi", answer, "garden", choices=ROOMS, asked="Where is Mary?") == score


def test_words_of_the_question_are_not_held_against_the_answer():
    people = ("Fred", "Jeff", "Mary")
    assert value("babi", "Fred gave it to Jeff", "Fred", choices=people, asked="Who gave the milk to Jeff?") == 1.0
    assert value("babi", "Fred and Mary", "Fred", choices=people, asked="Who gave the milk to Jeff?") == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("teal otter jade lynx", 1.0),
        ("Here it is: Teal otter,\njade lynx.", 1.0),
        ("teal otter lynx jade", 0.5),
        ("otter jade lynx", 0.0),
        ("teal teal otter jade", 0.75),
        ("", 0.0),
    ],
)
def test_copying_counts_words_up_to_the_first_wrong_one(answer, score):
    assert value("copying", answer, "teal otter jade lynx") == score


DOCUMENTS = {
    "D12": "Water is wet. Ada lives in Perth. Fire is hot.",
    "D34": "Project X is led by Ada.",
    "D56": "Nothing.",
}
GOOD = 'Answer: Perth\n[D12] "Ada lives in Perth."\n[D34] "Project X is led by Ada."'


def cite(answer):
    given = sample("citations", "Perth", cited=("D34", "D12"), documents=DOCUMENTS)
    return TASKS["citations"].judge(given, answer)


def test_a_right_answer_with_its_quotes_is_right():
    assert cite(GOOD).correct
    assert cite(GOOD).details == {
        "answer_right": True, "cited_right": 2, "cited_wrong": 0, "made_up": 0, "quotes": 2, "quotes_verbatim": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (GOOD.replace("Perth\n", "Sydney\n"), {"answer_right": False, "quotes_verbatim": 2}),
        (GOOD.replace("lives in", "lived in"), {"answer_right": True, "quotes_verbatim": 1, "quotes": 2}),
        (GOOD.replace("[D12]", "[D56]"), {"cited_right": 1, "cited_wrong": 1, "made_up": 0, "quotes_verbatim": 1}),
        (GOOD.replace("[D12]", "[D99]"), {"cited_right": 1, "cited_wrong": 1, "made_up": 1}),
        ("Answer: Perth", {"answer_right": True, "cited_right": 0, "quotes": 0}),
        (GOOD + '\n[D56] "Nothing."', {"cited_right": 2, "cited_wrong": 1, "quotes_verbatim": 3}),
        ("", {"answer_right": False, "quotes": 0, "made_up": 0}),
    ],
)
def test_each_part_that_is_wrong_is_told(answer, expected):
    judged = cite(answer)
    assert not judged.correct
    assert {name: judged.details[name] for name in expected} == expected


def test_after_a_check_only_the_last_answer_counts():
    assert final_answer("Quote: 'is 12'. Answer: 12. Answer: 13") == "13"
    assert value("needle", "The text says 4829173. Answer: 1", "4829173", prompt="verify") == 0.0
    assert value("needle", "It could be 1. Answer: 4829173", "4829173", prompt="verify") == 1.0
    assert value("needle", "4829173", "4829173", prompt="verify") == 1.0
