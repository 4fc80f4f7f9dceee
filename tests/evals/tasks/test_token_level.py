"""Token-level tasks: what is asked can be found in the example by rule, and the published parameters hold."""

import hashlib

import numpy as np
import pytest

from sparse_attn.evals.tasks.token_level import IGNORED, TOKEN_TASKS, VOCABULARY, ZOOLOGY_SETTINGS

BATCHES = {
    "recall": {"tokens": 64, "pairs": 4},
    "multi_query_recall": {"tokens": 64, "pairs": 4},
    "hop_chains": {"tokens": 64, "hops": 3},
    "copying": {"tokens": 65},
}


def batch(name, examples=200, **changes):
    return TOKEN_TASKS[name](examples, **(BATCHES[name] | changes))


def oracle(name, row, hops=3):
    """What follows each position of an example, by rule: -1 where the rule has nothing to say."""
    said = np.full(len(row), -1)
    if name in ("recall", "multi_query_recall"):
        value = {}
        for at in range(0, len(row) - 1, 2):
            key = row[at]
            if key in value:
                said[at] = value[key]
            elif 0 < key < VOCABULARY // 2 <= row[at + 1]:
                value[key] = row[at + 1]
        said[-1] = value.get(row[-1], -1)
        return said
    if name == "hop_chains":
        follows = {row[at]: row[at + 1] for at in range(0, len(row) - 1, 2) if row[at]}
        token = row[-1]
        for _ in range(hops):
            token = follows[token]
        said[-1] = token
        return said
    mark = int(np.flatnonzero(row == 0)[0])
    for at in range(mark, len(row) - 1):
        said[at] = row[at - mark]
    return said


@pytest.mark.parametrize("name", TOKEN_TASKS)
def test_an_oracle_is_always_right_and_a_guesser_scores_chance(name):
    made = batch(name)
    predictions = np.array([oracle(name, row) for row in made.inputs])
    assert made.accuracy(predictions) == 1.0
    # A guesser picks among the tokens that are asked for in the same example.
    random = np.random.default_rng(0)
    if name != "copying":
        candidates = {
            "recall": made.inputs[:, 1:8:2], "multi_query_recall": made.inputs[:, 1:8:2],
            "hop_chains": np.array([[oracle(name, np.array([*row[:-1], start]))[-1] for start in _starts(row)]
                                    for row in made.inputs]),
        }[name]  # fmt: skip
        picks = random.integers(candidates.shape[1], size=made.inputs.shape)
        guesses = np.take_along_axis(candidates, picks, 1)
        assert abs(made.accuracy(guesses) - made.chance) < 0.12
    else:
        assert made.accuracy(random.integers(1, VOCABULARY, size=made.inputs.shape)) < 0.01


def _starts(row):
    links = {row[at]: row[at + 1] for at in range(0, len(row) - 1, 2) if row[at]}
    return sorted(set(links) - set(links.values()))


@pytest.mark.parametrize("name", TOKEN_TASKS)
def test_shapes_seeds_and_what_is_ignored(name):
    made = batch(name, examples=20)
    assert made.inputs.shape == made.labels.shape == (20, BATCHES[name]["tokens"])
    assert made.inputs.dtype == made.labels.dtype == np.int64
    assert (made.labels != IGNORED).any(axis=1).all()
    assert np.array_equal(batch(name, examples=20).inputs, made.inputs)
    assert not np.array_equal(batch(name, examples=20, seed=1).inputs, made.inputs)
    assert made.inputs.min() >= 0
    assert made.inputs.max() < VOCABULARY


@pytest.mark.parametrize(("tokens", "pairs"), ZOOLOGY_SETTINGS)
def test_zoologys_settings(tokens, pairs):
    made = batch("multi_query_recall", examples=50, tokens=tokens, pairs=pairs)
    keys, values = made.inputs[:, 0 : 2 * pairs : 2], made.inputs[:, 1 : 2 * pairs : 2]
    assert ((keys > 0) & (keys < 4096)).all()
    assert ((values >= 4096) & (values < 8192)).all()
    assert all(len(set(row)) == pairs for row in [*keys, *values])
    assert ((made.labels != IGNORED).sum(1) == pairs).all()
    asked = made.inputs[made.labels != IGNORED].reshape(50, pairs)
    assert all(set(row) == set(key) for row, key in zip(asked, keys, strict=True))


def test_queries_are_near_more_often_than_far():
    made = batch("multi_query_recall", examples=2000, tokens=256, pairs=4)
    at = np.nonzero(made.labels != IGNORED)[1]
    space = (256 - 8) // 2
    weights = np.arange(1, space + 1) ** (0.01 - 1.0)
    first = (at == 8).mean() * 4  # how many examples ask at the nearest place
    assert first == pytest.approx(1 - (1 - weights[0] / weights.sum()) ** 4, abs=0.06)


def test_filler_hides_no_answer():
    made = batch("multi_query_recall", filler=True)
    assert (made.inputs[:, 8:] == 0).mean() < 0.01
    assert (made.inputs[made.labels != IGNORED] < 4096).all()


# Taken from one machine; any other must give the same.
DIGESTS = {
    "recall": "888f56ea03c4336c",
    "multi_query_recall": "a3f97cbd926d865e",
    "hop_chains": "07a85c89d6f6dc1e",
    "copying": "f0f148d8d4b16c8f",
}


@pytest.mark.parametrize("name", TOKEN_TASKS)
def test_equal_seeds_give_equal_tokens_on_any_machine(name):
    made = batch(name, examples=10, seed=3)
    content = np.stack([made.inputs, made.labels]).astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("recall", {"tokens": 63}, "tokens must be even and at least 4 times the 4 pairs, got 63"),
        ("multi_query_recall", {"pairs": 20}, "at least 4 times the 20 pairs, got 64"),
        ("multi_query_recall", {"vocabulary": 8}, "vocabulary must be at least 16"),
        ("hop_chains", {"hops": 20}, "4 chains of 20 hops take 161 tokens"),
        ("copying", {"tokens": 64}, "tokens must be odd and at least 3"),
    ],
)
def test_sizes_that_do_not_fit(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        batch(name, **sizes)


def test_predictions_of_another_shape():
    with pytest.raises(ValueError, match="predictions must have shape"):
        batch("recall").accuracy(np.zeros((3, 3)))
