"""One training run: tasks, a model, a recipe; every step the same graph, every number from the run's own generator."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Task


@dataclass(frozen=True)
class Recipe:
    """How a run learns: AdamW, a linear warm-up, then a cosine down to `final` of the rate.

    Attributes:
        steps: Of the whole run.
        rate: Highest learning rate.
        warmup: Steps of the warm-up.
        final: What is left of the rate at the end.
        weight_decay: Of every weight of two axes or more.
        clip: Norm that gradients are cut to.
        quick: Multiplies the rate of the parameters that `Trainer` is told are quick.
        autocast: dtype of matrix products; None: the weights' own.
    """

    steps: int
    rate: float
    warmup: int = 100
    final: float = 0.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    quick: float = 1.0
    autocast: torch.dtype | None = None

    def share(self, step: Tensor) -> Tensor:
        """Of the highest rate, at a step counted from 0."""
        rising = (step + 1.0) / max(1, self.warmup)
        gone = ((step - self.warmup) / max(1, self.steps - self.warmup)).clamp(0.0, 1.0)
        falling = self.final + (1.0 - self.final) * 0.5 * (1.0 + torch.cos(math.pi * gone))
        return torch.minimum(rising, falling)


class Trainer:
    """Trains a model on tasks, one of them a step, on the model's device.

    On a GPU the whole step (drawing the batch, forward, backward, AdamW) is captured into one CUDA graph for each task
    after a few ordinary steps, and runs on a stream of its own: several trainers stepped in turn by one process fill a
    card that one small model leaves idle. A step begins after what the caller's stream holds by then, so weights may be set
    between steps; the caller's stream waits for steps only in `wait`, `state` and `recent_loss`. Nothing is read back until it
    is asked for.

    Args:
        model: Takes ``(tokens [B, T], at [B, Q])`` and gives logits ``[B, Q, V]``.
        tasks: Each with its batch size.
        order: Which task each step takes, over and over, as indices of `tasks`; one after the other if None.
        recipe: How it learns.
        quick: Parts of parameters' names: those learn at `recipe.quick` times the rate, such as parts that start from nothing
            in a model that is otherwise trained.
        seed: Of the data. Runs of equal seed, steps and device repeat.
        extra_loss: Called with the model after each forward pass, inside the step and its CUDA graph: a number on the model's
            device that is added to the cross entropy, such as ``lambda model: 0.1 * nn.budget_terms(model)`` or the lessons of
            `nn.selection_loss`. `losses` holds the answers' cross entropy alone.
        capture: Use CUDA graphs where there is a GPU.

    Raises:
        ValueError: no tasks, a batch size below 1, or an order that names a task that there is not; in a
            step, an extra loss that is not one number.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[tuple[Task, int]],
        recipe: Recipe,
        *,
        order: Sequence[int] | None = None,
        quick: Sequence[str] = (),
        seed: int = 0,
        extra_loss: Callable[[nn.Module], Tensor] | None = None,
        capture: bool = True,
    ) -> None:
        if not tasks:
            raise ValueError("tasks must hold at least one (task, batch size), got none")
        for _, examples in tasks:
            if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
                raise ValueError(f"tasks: a batch size must be an integer of at least 1, got {examples!r}")
        self.model, self.tasks, self.recipe = model, list(tasks), recipe
        self.order = _order(order, len(self.tasks))
        self.extra_loss = extra_loss
        device = next(model.parameters()).device
        self.device, self.on_gpu = device, device.type == "cuda"
        self.capture = capture and self.on_gpu
        self.generator = torch.Generator(device).manual_seed(seed)
        self.count = torch.zeros((), device=device)
        self.rate = torch.zeros((), device=device)
        self._losses = torch.full((recipe.steps,), math.nan, device=device)
        self.quick_rate = torch.zeros((), device=device)
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            kind = any(part in name for part in quick), parameter.ndim >= 2
            groups.setdefault(kind, []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": params,
                    "lr": self._rate_of(fast),
                    "weight_decay": recipe.weight_decay * decayed,
                    "quick": fast,
                }
                for (fast, decayed), params in sorted(groups.items())
            ],
            lr=self.rate,
            betas=recipe.betas,
            fused=self.on_gpu or None,
            foreach=None if self.on_gpu else False,
            capturable=self.on_gpu,
        )
        self.stream = torch.cuda.Stream(device) if self.on_gpu else None
        self._graphs: dict[int, Any] = {}
        self._warm: dict[int, int] = {}
        self.done = 0

    def step(self) -> None:
        """One step on the task whose turn it is. Past the recipe's last step nothing happens."""
        if self.done >= self.recipe.steps:
            return
        task = self.order[self.done % len(self.order)]
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with self._on_stream():
            if task in self._graphs:
                self._graphs[task].replay()
            elif self.capture and self._warm.get(task, 0) >= 2:  # kernels are compiled and buffers are there by now
                self._graphs[task] = self._captured(task)
                self._graphs[task].replay()
            else:
                self._step(task)
                self._warm[task] = self._warm.get(task, 0) + 1
        self.done += 1

    def _rate_of(self, quick: bool) -> Tensor:
        return self.quick_rate if quick else self.rate

    def _captured(self, task: int) -> Any:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        torch.cuda.synchronize(self.device)
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            self._step(task)
        return graph

    def _step(self, task: int) -> None:
        drawn, examples = self.tasks[task]
        batch = drawn.draw(examples, self.generator)
        self.rate.copy_(self.recipe.rate * self.recipe.share(self.count))
        self.quick_rate.copy_(self.rate * self.recipe.quick)
        self.optimizer.zero_grad(set_to_none=True)
        dtype = self.recipe.autocast
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None, cache_enabled=False):
            logits = self.model(batch.tokens, batch.at)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.answers.flatten())
        whole = loss
        if self.extra_loss is not None:
            extra = self.extra_loss(self.model)
            if not isinstance(extra, Tensor) or extra.dim():
                got = tuple(extra.shape) if isinstance(extra, Tensor) else repr(extra)
                raise ValueError(f"extra_loss must give a tensor of one number, shape (), got {got}")
            whole = loss + extra
        whole.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self._losses.scatter_(0, self.count.long().view(1), loss.detach().view(1))
        self.count += 1.0

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def wait(self) -> None:
        """Let the caller's stream go on only after all steps so far: before the model is used for anything else.

        The host does not wait. Gradients are the step's own memory: they are to be read before the next step.
        """
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    @property
    def losses(self) -> Tensor:
        """``[steps]``: the loss of each step so far, on the device, NaN for those to come; the caller's stream waits."""
        self.wait()
        return self._losses

    def recent_loss(self, steps: int = 50) -> float:
        """The mean loss of the last steps; waits for the device."""
        return float(self.losses[max(0, self.done - steps) : self.done].mean())

    def state(self) -> dict[str, Any]:
        """All that a later run needs to go on with the same numbers: for `torch.save`."""
        self.wait()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": self._losses.clone(),
            "done": self.done,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, in a trainer of the same model, tasks and recipe that has not begun.

        Raises:
            ValueError: a trainer that has taken steps.
        """
        if self.done:
            raise ValueError(f"resume needs a trainer that has not begun, got one after {self.done} steps")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate_of(group["quick"])
        self.generator.set_state(state["generator"].cpu())
        self._losses.copy_(state["losses"])
        self.done = state["done"]
        self.count.fill_(float(self.done))


def _order(order: Sequence[int] | None, tasks: int) -> list[int]:
    if order is None:
        return list(range(tasks))
    found = list(order)
    for task in found:
        if isinstance(task, bool) or not isinstance(task, int) or not 0 <= task < tasks:
            raise ValueError(f"order must name tasks by their index, 0 to {tasks - 1}, got {task!r}")
    if not found:
        raise ValueError("order must name at least one task, or be None for one after the other, got none")
    return found
