"""What the device's generators draw, judged by rules and, for recall, by the distribution of the host's generator."""

import itertools

import pytest
import torch

from sparse_attn.evals.tasks.token_level import multi_query_recall
from sparse_attn.training import Batch, FactChains, MultiQueryRecall, from_token_batch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("tokens", "pairs"), [(64, 4), (32, 8), (16, 1)])
def test_recall_keeps_the_rules(tokens: int, pairs: int) -> None:
    batch = MultiQueryRecall(tokens, pairs, vocabulary=64).draw(50, seeded())
    for row, at, answers in zip(batch.tokens.tolist(), batch.at.tolist(), batch.answers.tolist(), strict=True):
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert len(set(keys)) == pairs
        assert len(set(values)) == pairs
        assert all(1 <= key < 32 <= value < 64 for key, value in zip(keys, values, strict=True))
        assert len(set(at)) == pairs
        assert all(position >= 2 * pairs and position % 2 == 0 for position in at)
        assert [dict(zip(keys, values, strict=True))[row[position]] for position in at] == answers
        assert sum(token != 0 for token in row) == 3 * pairs


def test_recall_is_distributed_as_the_host_draws_it() -> None:
    """Means of where queries stand, of keys and of values: each within 4 standard errors of the other's."""
    host = from_token_batch(multi_query_recall(4000, 64, 4, vocabulary=256, seed=5))
    ours = MultiQueryRecall(64, 4, vocabulary=256).draw(4000, seeded(5))
    for name in ("at", "answers"):
        a, b = getattr(host, name).double(), getattr(ours, name).double()
        for one, other in ((a, b), (a == a.min(), b == b.min()), (a <= a.median(), b <= a.median())):
            x, y = one.double().flatten(), other.double().flatten()
            error = ((x.var() + y.var()) / len(x)) ** 0.5
            assert abs(x.mean() - y.mean()) <= 4 * error


def test_host_batches_become_positions_and_answers() -> None:
    batch = multi_query_recall(6, 32, 4, seed=1)
    ours = from_token_batch(batch)
    predictions = torch.zeros(6, 32, dtype=torch.int64).scatter(1, ours.at, ours.answers)
    assert batch.accuracy(predictions.numpy()) == 1.0
    assert ours.at.shape == (6, 4)


CASES = [(64, 1, 8, 8, 1.0), (64, 2, 4, 8, 1.0), (64, 4, 2, 2, 1.0), (128, 4, 4, 1, 0.5), (26, 2, 4, 1, 1.0)]


@pytest.mark.parametrize(("tokens", "hops", "chains", "questions", "facts_in"), CASES)
def test_chains_can_be_followed_to_the_answer(
    tokens: int, hops: int, chains: int, questions: int, facts_in: float
) -> None:
    task = FactChains(tokens, hops, chains, questions, facts_in=facts_in, filler=5, vocabulary=80)
    batch = task.draw(40, seeded(2))
    body = tokens - 2 * questions
    for row, at, answers in zip(batch.tokens.tolist(), batch.at.tolist(), batch.answers.tolist(), strict=True):
        links, places = facts_of(row[:body])
        assert len(links) == hops * chains
        assert max(places) + 1 < task.room
        assert all(later - place >= 3 for place, later in itertools.pairwise(places))
        assert at == list(range(body, tokens, 2))
        assert all(row[position + 1] == 0 for position in at)
        assert len({row[position] for position in at}) == questions
        for position, answer in zip(at, answers, strict=True):
            taken, name = 0, row[position]
            while name in links:
                taken, name = taken + 1, links[name]
            assert name == answer
            assert taken == hops if questions != hops * chains else 1 <= taken <= hops


def facts_of(body: list[int]) -> tuple[dict[int, int], list[int]]:
    """Pairs of neighbouring names in a document whose other tokens are filler, read from left to right."""
    places, position = [], 0
    while position < len(body):
        if body[position] > 5:
            assert body[position + 1] > 5
            places.append(position)
            position += 1
        position += 1
    return {body[place]: body[place + 1] for place in places}, places


def test_places_are_drawn_evenly() -> None:
    """Every token but those at the ends is covered by a pair equally often; two pairs never touch."""
    batch = FactChains(50, 1, 4, 1, filler=5, vocabulary=60).draw(20_000, seeded(3))
    covered = (batch.tokens[:, :48] > 5).double().mean(0)[12:36]
    assert float(covered.std() / covered.mean()) < 0.06


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: FactChains(20, 2, 4), "tokens must leave 24 for 8 pairs before 1 questions, got 20"),
        (lambda: FactChains(64, 0, 4), "hops and chains must be at least 1, got 0 and 4"),
        (lambda: FactChains(64, 2, 4, 5), r"questions must be 1 to 4 \(first tokens\) or 8 \(all\), got 5"),
        (
            lambda: FactChains(64, 2, 4, filler=60, vocabulary=64),
            "vocabulary must hold the mark, 60 filler words and 12 names",
        ),
        (lambda: FactChains(64, 2, 4, facts_in=0.0), "facts_in must lie above 0 and at most at 1, got 0.0"),
        (lambda: MultiQueryRecall(30, 8), "tokens must be even and at least 4 times the 8 pairs, got 30"),
    ],
)
def test_sizes_that_do_not_fit_are_named(task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task()


def test_equal_seeds_draw_equal_batches() -> None:
    task = FactChains(64, 2, 4)
    first, second, other = (task.draw(4, seeded(seed)) for seed in (7, 7, 8))
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in Batch.__dataclass_fields__)
    assert not torch.equal(first.tokens, other.tokens)
