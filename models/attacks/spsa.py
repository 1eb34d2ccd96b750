"""SPSA (Spall 1992; Uesato et al. 2018): projected Adam on a gradient estimated along random signs."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from models.attacks.core import base as core
from models.attacks.core.run import AttackRun
from models.attacks.cw import adam
from models.attacks.nes import estimate


class SPSA(core.Attack):
    name = "spsa"
    summary = "Adam on a gradient estimated from scores along random signs (Uesato et al. 2018)"
    norms = ("linf", "l2")
    forwards = "steps * (samples + 1) + 2"
    backwards = "0"
    at_once = "samples"
    access = "scores"

    class Config(core.Config):
        norm: Literal["linf", "l2"] = Field("linf", description="Norm of the perturbation.")
        steps: int = Field(100, ge=1, le=10_000, description="Steps of Adam.")
        samples: int = Field(128, ge=2, le=10_000, description="Queries of each estimate, in antithetic pairs.")
        width: float = Field(0.01, gt=0, le=1, description="Size of the probes in pixel units.")
        learning_rate: float = Field(0.01, gt=0, le=1, description="Step size of Adam.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        state.x = run.x if run.start is run.x else run.threat.project(run.x, run.start)
        state.first = state.second = torch.zeros_like(run.x)
        for number in range(config.steps):
            gradient = estimate(run, state.x, config.samples // 2, config.width, ("spsa", number), signs=True)
            y = state.x + adam(run, gradient, number + 1, config.learning_rate)
            state.x = run.threat.project(run.x, y)
            run.evaluate(state.x)
            yield
