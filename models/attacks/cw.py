"""Carlini & Wagner (2017): the smallest L2 change as an optimisation over tanh space, weighed against the margin."""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import expand_to
from models.attacks.core.run import AttackRun

INSIDE = 0.999999
"""Keeps black and white pixels movable: the derivative of tanh is zero at its ends."""


def adam(run: AttackRun, gradient: Tensor, step: int, rate: float) -> Tensor:
    """The next step of Adam (Kingma & Ba 2015), whose moments are `first` and `second` in the run's state."""
    state = run.state
    state.first = 0.9 * state.first + 0.1 * gradient
    state.second = 0.999 * state.second + 0.001 * gradient.square()
    mean, spread = state.first / (1 - 0.9**step), state.second / (1 - 0.999**step)
    return rate * mean / (spread.sqrt() + 1e-8)


class Weights:
    """The search for the smallest weight of the margin that still gives success: tenfold until found, then halves."""

    def __init__(self, run: AttackRun, initial: float):
        state = run.state
        state.weight = torch.full((len(run.x),), initial, device=run.x.device)
        state.low, state.high = torch.zeros_like(state.weight), torch.full_like(state.weight, torch.inf)
        state.found = torch.zeros_like(run.done)

    @staticmethod
    def narrow(run: AttackRun) -> None:
        """After a run: which weights succeeded, and the next ones to try."""
        state = run.state
        state.high = torch.where(state.found, state.weight, state.high)
        state.low = torch.where(state.found, state.low, state.weight)
        state.weight = torch.where(state.high.isinf(), state.weight * 10, (state.low + state.high) / 2).clamp_max(1e10)
        state.found = torch.zeros_like(state.found)


class CW(core.Attack):
    name = "cw"
    summary = "The smallest L2 change by optimisation, with a search for its weight (Carlini & Wagner 2017)"
    norms = ("l2",)
    forwards = "searches * (steps + 1) + 2"
    backwards = "searches * steps"
    minimal = True

    class Config(core.Config):
        steps: int = Field(1000, ge=1, le=100_000, description="Steps of Adam for each weight.")
        searches: int = Field(9, ge=1, le=30, description="Weights to try.")
        learning_rate: float = Field(0.01, gt=0, le=1, description="Step size of Adam.")
        weight: float = Field(1e-3, gt=0, le=1e6, description="First weight of the margin.")
        confidence: float = Field(0.0, ge=0, le=1000, description="By how much the wrong class has to win.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        Weights(run, config.weight)
        for _ in range(config.searches):
            state.start = ((2 * run.x - 1) * INSIDE).atanh()
            state.w, state.nearest = state.start, (state.start.tanh() + 1) / 2
            state.first = state.second = torch.zeros_like(run.x)
            state.loss = torch.full_like(run.distance, torch.inf)
            run.paused = torch.zeros_like(run.done)
            for step in range(1, config.steps + 1):
                self._descend(run, step)
                yield
                if not bool(run.active.any()):
                    break
            Weights.narrow(run)

    def _descend(self, run: AttackRun, step: int) -> None:
        state, config = run.state, self.config
        squash = state.w.tanh()
        x = (squash + 1) / 2

        def loss_fn(logits: Tensor) -> Tensor:
            return -state.weight * torch.relu(run.criterion.margin(logits) + config.confidence)

        margin, gradient = run.value_and_grad(x, loss_fn, update_best=False)
        hit = margin + config.confidence < 0
        state.found = state.found | (hit & run.active)
        run.update_best(x, margin + config.confidence)
        change = (2 * (x - state.nearest) - gradient) * (1 - squash.square()) / 2
        state.w = torch.where(
            expand_to(run.active, x), state.w - adam(run, change, step, config.learning_rate), state.w
        )
        if (step - 1) % -(-config.steps // 10) == 0:  # each image stops by itself once a tenth brought no progress
            loss = (x - state.nearest).flatten(1).square().sum(1) - run.value
            run.paused = run.paused | ~(loss <= 0.9999 * state.loss)
            state.loss = loss
