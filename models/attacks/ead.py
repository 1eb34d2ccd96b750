"""Elastic-net attack (Chen et al. 2018): minimise c * f(x) + ||x - x_0||_2^2 + beta * ||x - x_0||_1 by FISTA."""

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
    """Soft thresholding: the proximal step of beta * ||z - x||_1 inside [0, 1] (eq. 5)."""
    delta = z - x
    return (x + delta.sign() * (delta.abs() - beta).clamp_min(0)).clamp(0, 1)


class EAD(core.Attack):
    name = "ead"
    summary = "Minimises the elastic net of the perturbation: sparse changes, small in L1 (Chen et al. 2018)"
    norms = ("l1",)
    forwards = "searches * (2 * steps + 1) + 2"
    backwards = "searches * steps"
    minimal = True

    class Config(core.Config):
        steps: int = Field(1000, ge=1, le=100_000, description="Steps for each weight c.")
        searches: int = Field(9, ge=1, le=30, description="Steps of the binary search for c.")
        step: float = Field(0.01, gt=0, le=1, description="Initial step size.")
        weight: float = Field(1e-3, gt=0, le=1e6, description="Initial weight c of the margin.")
        beta: float = Field(0.01, ge=0, le=1, description="Weight of the L1 norm.")
        rule: Literal["l1", "en"] = Field(
            "l1", description="Decision rule: keep the smallest L1 norm (l1) or elastic net (en)."
        )
        confidence: float = Field(0.0, ge=0, le=1000, description="Required margin of the wrong class.")

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
            # For a successful image only the L1 norm has to shrink; the L2 term would shrink the largest changes.
            pull = torch.where(expand_to(run.value == 0, pull), 0, pull)
        downhill = pull - gradient
        # x_k+1 = S_beta(y_k - alpha_k * gradient)
        before, state.x = state.x, shrink(state.y - rate * downhill, run.x, config.beta)
        state.y = state.x + step / (step + 3) * (state.x - before)  # y_k+1; may leave [0, 1]
        margin = run.margin_of(run.logits(state.x)) + config.confidence
        state.succeeded = state.succeeded | ((margin < 0) & run.active)
        run.update_best(state.x, margin)
        # with rule l1 the steps do not decrease this loss, so it cannot tell when to stop
        if config.rule == "en" and step % -(-config.steps // 10) == 0:
            run.paused = run.paused | ~(loss <= 0.9999 * state.loss)
            state.loss = torch.where(run.paused, state.loss, loss)
