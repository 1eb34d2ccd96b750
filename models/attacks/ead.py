"""Elastic-net attack (Chen et al. 2018): iterative shrinkage on ||d||^2 + beta ||d||_1 leaves few pixels changed."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import expand_to
from models.attacks.core.run import AttackRun
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

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        if config.rule == "en":
            run.measure = lambda y: self._elastic(y - run.x)
        Weights(run, config.weight)
        for _ in range(config.searches):
            state.x = state.y = run.x
            state.loss = torch.full_like(run.distance, torch.inf)
            run.paused = torch.zeros_like(run.done)
            for step in range(config.steps):
                self._descend(run, step)
                yield
                if not bool(run.active.any()):
                    break
            Weights.narrow(run)

    def _elastic(self, delta: Tensor) -> Tensor:
        delta = delta.flatten(1)
        return delta.square().sum(1) + self.config.beta * delta.abs().sum(1)

    def _descend(self, run: AttackRun, step: int) -> None:
        state, config = run.state, self.config

        def loss_fn(logits: Tensor) -> Tensor:
            return -state.weight * torch.relu(run.criterion.margin(logits) + config.confidence)

        _, gradient = run.value_and_grad(state.y, loss_fn, update_best=False)
        loss = (state.y - run.x).flatten(1).square().sum(1) - run.value
        rate = config.step * (1 - step / config.steps) ** 0.5
        pull = 2 * (state.y - run.x)
        if config.rule == "l1":
            # Squares would shrink the few pixels that matter most: an image that is over the boundary has only to
            # lose length.
            pull = torch.where(expand_to(run.value == 0, pull), 0, pull)
        downhill = pull - gradient
        before, state.x = state.x, shrink(state.y - rate * downhill, run.x, config.beta)
        state.y = state.x + step / (step + 3) * (state.x - before)  # may leave the range, as in the paper
        margin = run.margin_of(run.logits(state.x)) + config.confidence
        state.found = state.found | ((margin < 0) & run.active)
        run.update_best(state.x, margin)
        # for the L1 norm this loss is not what the steps lower, so it cannot say when they are done
        if config.rule == "en" and step % -(-config.steps // 10) == 0:
            run.paused = run.paused | ~(loss <= 0.9999 * state.loss)
            state.loss = torch.where(run.paused, state.loss, loss)
