"""Decoupled direction and norm (Rony et al. 2019): the gradient gives the direction, success or failure the radius."""

import math
from collections.abc import Iterator

import torch
from pydantic import Field

from models.attacks.core import base as core
from models.attacks.core.norms import TINY, wide
from models.attacks.core.run import Trial


class DDN(core.Attack):
    name = "ddn"
    summary = "Gradient steps on a sphere that shrinks on success and grows on failure (Rony et al. 2019)"
    norms = ("l2",)
    minimal = True

    class Config(core.Config):
        steps: int = Field(100, ge=1, le=10_000, description="Gradient steps.")
        radius: float = Field(1.0, gt=0, le=100, description="L2 length of the first perturbation.")
        gamma: float = Field(0.05, gt=0, lt=1, description="How much the radius changes at each step.")

    def steps(self, trial: Trial) -> Iterator[None]:
        state, config, norm = trial.state, self.config, trial.threat.geometry
        state.x = trial.x
        state.radius = torch.full_like(trial.radius, config.radius)
        for number in range(config.steps):
            margin, gradient = trial.slope(state.x)
            rate = 0.01 + 0.99 * (1 + math.cos(math.pi * number / config.steps)) / 2
            delta = state.x - trial.x + rate * norm.steepest(gradient)
            farthest = norm.size(trial.threat.masked(torch.maximum(trial.x, 1 - trial.x)))
            factor = torch.where(margin < 0, 1 - config.gamma, 1 + config.gamma)
            state.radius = torch.minimum(state.radius * factor, farthest)
            delta = delta * wide(state.radius / norm.size(delta).clamp_min(TINY), delta)
            # Rounding within the loop: what succeeds here succeeds as an 8-bit image.
            state.x = trial.threat.at(None).snap(trial.x, (trial.x + delta).clamp(0, 1))
            yield
        trial.look(state.x)
