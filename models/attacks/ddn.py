"""Decoupled direction and norm (Rony et al. 2019): gradient steps on a sphere whose radius adapts to success."""

import math
from collections.abc import Iterator

import torch
from pydantic import Field

from models.attacks.core import base as core
from models.attacks.core.norms import TINY, expand_to
from models.attacks.core.run import AttackRun


class DDN(core.Attack):
    name = "ddn"
    summary = "Gradient steps on a sphere that shrinks on success and grows on failure (Rony et al. 2019)"
    norms = ("l2",)
    minimal = True

    class Config(core.Config):
        steps: int = Field(100, ge=1, le=10_000, description="Gradient steps.")
        radius: float = Field(1.0, gt=0, le=100, description="L2 norm of the first perturbation.")
        gamma: float = Field(0.05, gt=0, lt=1, description="Relative change of the radius in each step.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config, norm = run.state, self.config, run.threat.geometry
        state.x = run.x
        state.radius = torch.full_like(run.radius, config.radius)
        for number in range(config.steps):
            margin, gradient = run.value_and_grad(state.x)
            rate = 0.01 + 0.99 * (1 + math.cos(math.pi * number / config.steps)) / 2
            delta = state.x - run.x + rate * norm.steepest(gradient)
            farthest = norm.size(run.threat.masked(torch.maximum(run.x, 1 - run.x)))
            # r_k+1 = r_k * (1 - gamma) for a success, r_k * (1 + gamma) otherwise
            factor = torch.where(margin < 0, 1 - config.gamma, 1 + config.gamma)
            state.radius = torch.minimum(state.radius * factor, farthest)
            delta = delta * expand_to(state.radius / norm.size(delta).clamp_min(TINY), delta)
            # x_k+1 = round(x_0 + r_k+1 * d / ||d||): a success here is a success of the 8-bit image
            state.x = run.threat.at(None).quantise(run.x, (run.x + delta).clamp(0, 1))
            yield
        run.evaluate(state.x)
