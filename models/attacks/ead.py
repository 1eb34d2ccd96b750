"""Elastic-net attack (Chen et al. 2018): iterative shrinkage on ||d||^2 + beta ||d||_1 leaves few pixels changed."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import wide
from models.attacks.core.run import Trial
from models.attacks.cw import Weights


def shrink(z: Tensor, x: Tensor, beta: float) -> Tensor:
    """The proximal step of beta ||z - x||_1 inside the pixel range (eq. 5)."""
    delta = z - x
    return (x + delta.sign() * (delta.abs() - beta).clamp_min(0)).clamp(0, 1)


class EAD(core.Attack):
    name = "ead"
    summary = "Elastic-net optimisation: sparse changes, small in L1 (Chen et al. 2018)"
    norms = ("l1",)
    forwards = "searches * (2 * steps + 1) + 2"
    backwards = "searches * steps"
    minimal = True

    class Config(core.Config):
        steps: int = Field(1000, ge=1, le=100_000, description="Steps for each weight.")
        searches: int = Field(9, ge=1, le=30, description="Weights to try.")
        step: float = Field(0.01, gt=0, le=1, description="Length of the first step.")
        weight: float = Field(1e-3, gt=0, le=1e6, description="First weight of the margin.")
        beta: float = Field(0.01, ge=0, le=1, description="Weight of the L1 norm.")
        rule: Literal["l1", "en"] = Field("l1", description="What is made small: the L1 norm or the elastic net.")
        confidence: float = Field(0.0, ge=0, le=1000, description="By how much the wrong class has to win.")

    def steps(self, trial: Trial) -> Iterator[None]:
        state, config = trial.state, self.config
        if config.rule == "en":
            trial.measure = lambda y: self._elastic(y - trial.x)
        Weights(trial, config.weight)
        for _ in range(config.searches):
            state.x = state.y = trial.x
            state.loss = torch.full_like(trial.distance, torch.inf)
            trial.idle = torch.zeros_like(trial.done)
            for step in range(config.steps):
                self._descend(trial, step)
                yield
                if not bool(trial.active.any()):
                    break
            Weights.narrow(trial)

    def _elastic(self, delta: Tensor) -> Tensor:
        delta = delta.flatten(1)
        return delta.square().sum(1) + self.config.beta * delta.abs().sum(1)

    def _descend(self, trial: Trial, step: int) -> None:
        state, config = trial.state, self.config

        def climb(logits: Tensor) -> Tensor:
            return -state.weight * torch.relu(trial.criterion.margin(logits) + config.confidence)

        _, gradient = trial.slope(state.y, climb, offer=False)
        loss = (state.y - trial.x).flatten(1).square().sum(1) - trial.value
        rate = config.step * (1 - step / config.steps) ** 0.5
        pull = 2 * (state.y - trial.x)
        if config.rule == "l1":
            # Squares would shrink the few pixels that matter most: an image that is over the boundary has only to
            # lose length.
            pull = torch.where(wide(trial.value == 0, pull), 0, pull)
        downhill = pull - gradient
        before, state.x = state.x, shrink(state.y - rate * downhill, trial.x, config.beta)
        state.y = state.x + step / (step + 3) * (state.x - before)  # may leave the range, as in the paper
        margin = trial.margin_of(trial.scores(state.x)) + config.confidence
        state.found = state.found | ((margin < 0) & trial.active)
        trial.offer(state.x, margin)
        # for the L1 norm this loss is not what the steps lower, so it cannot say when they are done
        if config.rule == "en" and step % -(-config.steps // 10) == 0:
            trial.idle = trial.idle | ~(loss <= 0.9999 * state.loss)
            state.loss = torch.where(trial.idle, state.loss, loss)
