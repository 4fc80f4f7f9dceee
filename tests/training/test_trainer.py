"""A tiny model learns, losses repeat, and a run goes on where it was left."""

import contextlib
import math

import pytest
import torch

from sparse_attn.models import GatedConvolution, LanguageModel
from sparse_attn.nn import RoutedSelfAttention, SparseSelfAttention, budget_terms
from sparse_attn.patterns import TopBlocks, Window, parse
from sparse_attn.training import Batch, FactChains, MultiQueryRecall, Recipe, Trainer, accuracy

TASK = MultiQueryRecall(16, 2, vocabulary=64)


def trainer(steps: int, *, seed: int = 0, rate: float = 1e-2, batch: int = 4) -> Trainer:
    torch.manual_seed(3)
    mixers = [GatedConvolution(32), SparseSelfAttention(32, 1, Window(16), rope_theta=None)]
    model = LanguageModel(64, 32, mixers, kernel=0, deviation=0.1)
    return Trainer(model, [(TASK, batch)], Recipe(steps, rate, warmup=10), seed=seed)


class DenseMixer(torch.nn.Module):
    """PyTorch's attention over all earlier tokens, a whole batch in one call: the trainer is judged here, and hundreds of
    steps must cost little."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out_proj = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out_proj(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


def run(one: Trainer, steps: int) -> list[float]:
    for _ in range(steps):
        one.step()
    return one.losses[: one.done].tolist()


def test_two_layers_learn_to_recall_two_pairs() -> None:
    torch.manual_seed(3)
    model = LanguageModel(64, 32, [GatedConvolution(32), DenseMixer(32)], kernel=0, deviation=0.1)
    learner = Trainer(model, [(TASK, 32)], Recipe(300, 1e-2, warmup=10), seed=0)
    test = TASK.draw(200, torch.Generator().manual_seed(99))
    before = accuracy(learner.model, test)
    losses = run(learner, 300)
    assert losses[0] == pytest.approx(math.log(64), rel=0.5)
    assert before < 0.2
    assert accuracy(learner.model, test) > 0.9


def test_equal_seeds_give_equal_losses() -> None:
    first, second, other = run(trainer(6), 6), run(trainer(6), 6), run(trainer(6, seed=1), 6)
    assert first == second
    assert first != other


def test_resumed_run_is_the_run_without_a_break(tmp_path) -> None:
    whole = run(trainer(8), 8)
    half = trainer(8)
    run(half, 4)
    torch.save(half.state(), tmp_path / "state.pt")
    later = trainer(8, seed=77)  # its own seed is replaced by the saved generator
    later.resume(torch.load(tmp_path / "state.pt"))
    assert run(later, 4) == whole
    with pytest.raises(ValueError, match="resume needs a trainer that has not begun, got one after 8 steps"):
        later.resume(half.state())


def test_nothing_happens_after_the_last_step() -> None:
    one = trainer(2)
    run(one, 2)
    weights = {name: p.clone() for name, p in one.model.named_parameters()}
    one.step()
    assert one.done == 2
    assert all(torch.equal(p, weights[name]) for name, p in one.model.named_parameters())


def test_first_step_is_that_of_adamw_with_clipped_gradients() -> None:
    recipe = Recipe(10, 1e-2, warmup=4)
    one = trainer(10)
    one.recipe = recipe
    model = one.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = TASK.draw(4, torch.Generator().manual_seed(0))
    logits = model(batch.tokens, batch.at)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
    grads = dict(zip(before, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    norm = sum(float((g**2).sum()) for g in grads.values()) ** 0.5
    one.step()
    rate = 1e-2 * 1 / 4
    for name, p in model.named_parameters():
        g = grads[name] * min(1.0, 1.0 / (norm + 1e-6))
        decay = 0.1 if p.ndim >= 2 else 0.0
        expected = before[name] * (1 - rate * decay) - rate * g / (g.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-3, atol=2e-5)


def test_quick_parameters_learn_at_a_multiple_of_the_rate() -> None:
    def moved(quick: tuple[str, ...]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = LanguageModel(64, 16, [GatedConvolution(16)], kernel=0, deviation=0.1)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        recipe = Recipe(10, 1e-3, warmup=1, weight_decay=0.0, quick=5.0)
        Trainer(model, [(TASK, 8)], recipe, quick=quick).step()
        return {name: p.detach() - before[name] for name, p in model.named_parameters()}

    plain, quick = moved(()), moved((".mixer.",))
    for name in plain:
        torch.testing.assert_close(quick[name], plain[name] * (5.0 if ".mixer." in name else 1.0), rtol=1e-3, atol=1e-7)


def test_a_strong_extra_loss_is_learned_from_and_not_recorded() -> None:
    plain, one = trainer(1), trainer(1)
    weight = one.model.norm.weight
    one.extra_loss = lambda _: -1e6 * weight.sum()  # so strong that clipping leaves nothing of the rest
    assert run(plain, 1) == run(one, 1)
    rate = 1e-2 / 10
    torch.testing.assert_close(weight.detach(), torch.ones_like(weight) + rate)
    assert not torch.equal(plain.model.norm.weight, weight)


def test_rate_rises_then_falls_by_a_cosine() -> None:
    recipe = Recipe(110, 1.0, warmup=10, final=0.1)
    shares = [float(recipe.share(torch.tensor(float(step)))) for step in (0, 4, 9, 10, 60, 110)]
    assert shares == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1], abs=1e-6)


def test_tasks_take_turns_in_the_given_order() -> None:
    drawn = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def draw(self, examples: int, generator: torch.Generator) -> Batch:
            drawn.append((self.name, examples))
            return TASK.draw(examples, generator)

    model = trainer(1).model
    one = Trainer(model, [(Named("a"), 2), (Named("b"), 3)], Recipe(5, 1e-3), order=[0, 1, 1])
    run(one, 5)
    assert drawn == [("a", 2), ("b", 3), ("b", 3), ("a", 2), ("b", 3)]


def test_accuracy_counts_right_answers_over_parts() -> None:
    class Answers(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(tokens.gather(1, at), 10).float()  # says the asked token itself

    tokens = torch.tensor([[1, 2], [3, 4], [5, 6]])
    batch = Batch(tokens, torch.tensor([[0, 1], [0, 1], [0, 1]]), torch.tensor([[1, 2], [3, 9], [9, 9]]))
    assert accuracy(Answers(), batch, examples=2) == 3 / 6


def test_accuracy_asks_in_eval_mode_and_gives_each_module_its_mode_back() -> None:
    seen = []

    class Answers(torch.nn.Sequential):
        def forward(self, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            seen.append([module.training for module in self.modules()])
            return torch.zeros(*at.shape, 10)

    model = Answers(torch.nn.Dropout(0.5), torch.nn.Dropout(0.5))
    model[1].eval()  # frozen on purpose
    batch = Batch(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[0]]), torch.tensor([[0]]))
    accuracy(model, batch)
    assert seen == [[False, False, False]]
    assert [module.training for module in model.modules()] == [True, True, False]
    with pytest.raises(ValueError, match="must ask for at least one answer"):
        accuracy(model, Batch(batch.tokens, batch.at[:, :0], batch.answers[:, :0]))
    assert model.training


def routed(target: float | None) -> LanguageModel:
    torch.manual_seed(3)
    pattern = Window(2) | TopBlocks(4, block=2)
    return LanguageModel(64, 16, [RoutedSelfAttention(16, 1, pattern, target=target)], kernel=0, deviation=0.1)


def test_the_extra_loss_enters_the_gradients_and_not_the_record() -> None:
    model = routed(0.0)
    one = Trainer(model, [(TASK, 4)], Recipe(40, 3e-2, warmup=1), extra_loss=lambda model: 2.0 * budget_terms(model))
    plain = Trainer(routed(None), [(TASK, 4)], Recipe(40, 3e-2, warmup=1))
    torch.manual_seed(5)
    plain.step()
    torch.manual_seed(5)  # the router's noise
    one.step()
    first = model.blocks[0].mixer.route
    assert one.losses[0] == pytest.approx(float(plain.losses[0]), rel=1e-4)
    run(one, 39)
    assert float(model.blocks[0].mixer.route.expected) < 0.3 * float(first.expected)
    wrong = Trainer(routed(None), [(TASK, 4)], Recipe(1, 1e-3), extra_loss=lambda model: torch.zeros(3))
    with pytest.raises(ValueError, match=r"extra_loss must give a tensor of one number, shape \(\), got \(3,\)"):
        wrong.step()


def test_a_step_begins_after_the_callers_work_and_the_caller_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams in place of CUDA's, which note who waits for whom."""
    waits = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            waits.append((self.name, other.name, one.done))

    one, callers = trainer(3), Stream("caller")
    one.stream = Stream("trainer")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: callers)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    one.step()
    assert waits == [("trainer", "caller", 0)]
    one.wait()
    one.state()
    one.recent_loss()
    assert len(one.losses) == 3
    assert waits[1:] == [("caller", "trainer", 1)] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": [0, 1]}, "order must name tasks by their index, 0 to 0, got 1"),
        ({"order": [-1]}, "order must name tasks by their index, 0 to 0, got -1"),
        ({"order": [0.0]}, "order must name tasks by their index, 0 to 0, got 0.0"),
        ({"order": []}, "order must name at least one task, or be None .*, got none"),
        ({"tasks": [(TASK, 0)]}, "a batch size must be an integer of at least 1, got 0"),
    ],
)
def test_a_wrong_order_or_batch_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(**{"model": trainer(1).model, "tasks": [(TASK, 4)], "recipe": Recipe(1, 1e-3), **options})


def test_no_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tasks must hold at least one \(task, batch size\), got none"):
        Trainer(trainer(1).model, [], Recipe(1, 1e-3))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "text", ["window(32)", "window(8) | anchortree(2, block=8)", "window(8) | hashed(2, 8, chunk=8)"]
)
def test_captured_steps_are_the_ordinary_ones(text: str) -> None:
    def losses(capture: bool) -> list[float]:
        torch.manual_seed(0)
        mixers = [SparseSelfAttention(64, 1, parse(text), rope_theta=None) for _ in range(2)]
        model = LanguageModel(512, 64, mixers, deviation=0.1).cuda()
        tasks = [(FactChains(64, hops, 4 // hops, 4, filler=15, vocabulary=512), 8) for hops in (1, 2)]
        return run(Trainer(model, tasks, Recipe(12, 1e-3, autocast=torch.bfloat16), seed=5, capture=capture), 12)

    ordinary, captured = losses(False), losses(True)
    assert captured == pytest.approx(ordinary, rel=1e-3)
