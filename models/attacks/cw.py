"""Carlini & Wagner (2017), L2: minimise ||x - x_0||_2^2 + c * f_6(x) over w, where x = (tanh(w) + 1) / 2.

f_6(x) = max(margin, -confidence); c is found by binary search.
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import expand_to
from models.attacks.core.run import AttackRun

INSIDE = 0.999999
"""Scales pixels away from -1 and 1, where the derivative of tanh vanishes."""


def adam(run: AttackRun, gradient: Tensor, step: int, rate: float) -> Tensor:
    """The step of Adam number `step` (Kingma & Ba 2015). The moments are `first` and `second` of the run's state."""
    state = run.state
    state.first = 0.9 * state.first + 0.1 * gradient
    state.second = 0.999 * state.second + 0.001 * gradient.square()
    mean, variance = state.first / (1 - 0.9**step), state.second / (1 - 0.999**step)
    return rate * mean / (variance.sqrt() + 1e-8)


class Weights:
    """Binary search for the smallest weight c of the margin that succeeds: tenfold until the first success."""

    def __init__(self, run: AttackRun, initial: float):
        state = run.state
        state.weight = torch.full((len(run.x),), initial, device=run.x.device)
        state.low, state.high = torch.zeros_like(state.weight), torch.full_like(state.weight, torch.inf)
        state.succeeded = torch.zeros_like(run.done)

    @staticmethod
    def narrow(run: AttackRun) -> None:
        """After an optimisation: update the bounds from its success, and choose the next weight."""
        state = run.state
        state.high = torch.where(state.succeeded, state.weight, state.high)
        state.low = torch.where(state.succeeded, state.low, state.weight)
        state.weight = torch.where(state.high.isinf(), state.weight * 10, (state.low + state.high) / 2).clamp_max(1e10)
        state.succeeded = torch.zeros_like(state.succeeded)


class CW(core.Attack):
    name = "cw"
    summary = "Minimises the L2 norm plus a weighted margin, with a search for the weight (Carlini & Wagner 2017)"
    norms = ("l2",)
    forwards = "searches * (steps + 1) + 2"
    backwards = "searches * steps"
    minimal = True

    class Config(core.Config):
        steps: int = Field(1000, ge=1, le=100_000, description="Steps of Adam for each weight c.")
        searches: int = Field(9, ge=1, le=30, description="Steps of the binary search for c.")
        learning_rate: float = Field(0.01, gt=0, le=1, description="Step size of Adam.")
        weight: float = Field(1e-3, gt=0, le=1e6, description="Initial weight c of the margin.")
        confidence: float = Field(0.0, ge=0, le=1000, description="Required margin of the wrong class.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        Weights(run, config.weight)
        for _ in range(config.searches):
            state.start = ((2 * run.x - 1) * INSIDE).atanh()
            state.w, state.origin = state.start, (state.start.tanh() + 1) / 2
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
        state.succeeded = state.succeeded | (hit & run.active)
        run.update_best(x, margin + config.confidence)
        # d/dw (||x - x_0||^2 + c * f_6(x)), dx/dw = (1 - tanh(w)^2) / 2
        change = (2 * (x - state.origin) - gradient) * (1 - squash.square()) / 2
        state.w = torch.where(
            expand_to(run.active, x), state.w - adam(run, change, step, config.learning_rate), state.w
        )
        if (step - 1) % -(-config.steps // 10) == 0:  # an image stops once a tenth of the steps brought no progress
            loss = (x - state.origin).flatten(1).square().sum(1) - run.value
            run.paused = run.paused | ~(loss <= 0.9999 * state.loss)
            state.loss = loss
