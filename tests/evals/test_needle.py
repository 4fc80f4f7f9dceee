"""Prompts of an exact length, with everything where it is said to be, and answers judged right."""

import pytest

from sparse_attn.evals.book import book_text, is_heading, paragraphs
from sparse_attn.evals.needle import Wording, encode_paragraphs, hide_needle, is_found, made_up_number


class Letters:
    """One token a character."""

    def encode(self, text):
        return [ord(character) for character in text]

    def chat_frame(self):
        return "<user>", "<model>"


def words(tokens):
    return "".join(map(chr, tokens))


TEXT = [f"Paragraph {number} of a long story." for number in range(40)]
WORDING = Wording(opening="Read.\n\n", needle="The key is {secret}.\n\n", question="Which key?")


def build(length=400, depth=0.5, text=TEXT):
    haystack = encode_paragraphs(Letters(), text, length)
    return hide_needle(Letters(), haystack, length=length, depth=depth, secret="12345", wording=WORDING)


@pytest.mark.parametrize("depth", [0, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("length", [120, 400, 777])
def test_the_parts_stand_where_they_are_said_to(length, depth):
    prompt = build(length, depth)
    whole = words(prompt.tokens)
    assert len(prompt.tokens) == length
    assert whole.startswith("<user>Read.\n\n")
    assert whole.endswith("\n\nWhich key?<model>")
    assert words(prompt.tokens[prompt.needle.start : prompt.needle.stop]) == "The key is 12345.\n\n"
    before, after = (words(prompt.tokens[part.start : part.stop]) for part in prompt.text)
    assert (
        "\n\n".join(TEXT).startswith(before + after)
        or before + after == "".join(f"{p}\n\n" for p in TEXT)[: len(before + after)]
    )
    assert whole == f"<user>Read.\n\n{before}The key is 12345.\n\n{after}\n\nWhich key?<model>"
    assert not before or before.endswith("\n\n")


def test_depth_is_kept_to_within_a_paragraph():
    for depth in (0.1, 0.3, 0.5, 0.8):
        before, after = (len(part) for part in build(900, depth).text)
        assert abs(before / (before + after) - depth) < 20 / (before + after)


def test_the_text_is_the_same_at_every_depth():
    texts = set()
    for depth in (0.1, 0.5, 0.9):
        prompt = build(600, depth)
        texts.add(words(prompt.tokens[position] for part in prompt.text for position in part))
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 1.5}, "depth must be from 0 to 1, got 1.5"),
        ({"length": 30}, "length must leave room for text"),
        ({"length": 5000}, "the text has"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("The pass key is 48213.", True),
        ("48213", True),
        ("It is 482137.", False),
        ("It is 4 8 2 1 3.", False),
        ("", False),
    ],
)
def test_only_the_secret_itself_counts(answer, found):
    assert is_found("48213", answer) is found


def test_made_up_numbers_differ_and_repeat():
    numbers = [made_up_number("needle", length, depth) for length in (1, 2, 3) for depth in (0.1, 0.5)]
    assert len(set(numbers)) == 6
    assert numbers[0] == made_up_number("needle", 1, 0.1)
    assert all(len(number) == 5 for number in numbers)


def test_the_book_is_all_there_and_nothing_else():
    text = book_text()
    headings = [paragraph for paragraph in paragraphs(text) if is_heading(paragraph)]
    assert headings[:2] == ["BOOK ONE: 1805", "CHAPTER I"]
    assert len(headings) == 29
    assert 250_000 < len(text) < 400_000
    assert "gutenberg" not in text.lower()
    assert not any(
        str(secret) in text for secret in (made_up_number("needle", 1024, depth) for depth in (0.1, 0.5, 0.9))
    )
