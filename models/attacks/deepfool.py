"""DeepFool (Moosavi-Dezfooli et al. 2016): step to the nearest class boundary of the linearised model, and again."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks import core
from models.attacks.norms import TINY, wide
from models.attacks.trial import Trial

PUSH = 1e-4
"""Added to every distance. Without it iterates converge to the boundary from inside where clipping eats the step."""


def nearest(values: Tensor, gradients: Tensor, norm: str) -> Tensor:
    """The step over the nearest of the linearised boundaries (N, k), eq. 8 and 9 of the paper."""
    dual = 2 if norm == "l2" else 1
    lengths = gradients.flatten(2).norm(p=dual, dim=2).clamp_min(TINY)
    best = (values.abs() / lengths).argmin(1)
    rows = torch.arange(len(values), device=values.device)
    length, gradient = lengths[rows, best], gradients[rows, best]
    distance = values[rows, best].abs() / length + PUSH
    unit = gradient / wide(length, gradient) if norm == "l2" else gradient.sign()
    return -unit * wide(distance, gradient)


class DeepFool(core.Attack):
    name = "deepfool"
    summary = "Steps to the nearest boundary of the linearised model until it is crossed (Moosavi-Dezfooli et al. 2016)"
    norms = ("l2", "linf")
    minimal = True

    class Config(core.Config):
        norm: Literal["l2", "linf"] = Field("l2", description="How the perturbation is measured.")
        steps: int = Field(50, ge=1, le=1000, description="Most linearisations.")
        candidates: int = Field(10, ge=2, le=1000, description="Most likely classes among which the nearest is sought.")
        overshoot: float = Field(0.02, ge=0, le=1, description="How far beyond the boundary to go, relatively.")
        free_pixels: bool = Field(False, description="Count on pixels alone that are not at the end of their range.")

    def steps(self, trial: Trial) -> Iterator[None]:
        state, config = trial.state, self.config
        state.x, state.total = trial.x, torch.zeros_like(trial.x)
        for _ in range(config.steps):
            values, gradients = trial.jacobian(
                state.x, lambda logits: trial.criterion.surfaces(logits, config.candidates - 1)
            )
            if config.free_pixels:
                gradients = gradients * self._free(state.x, gradients)
            self._rest(trial)
            state.total = state.total + nearest(values, gradients, trial.threat.norm)
            moved = trial.x + (1 + config.overshoot) * state.total
            state.x = torch.where(wide(trial.done, moved), state.x, moved.clamp(0, 1))
            yield
        trial.look(state.x)

    def _rest(self, trial: Trial) -> None:
        trial.done = trial.done | (trial.margin < 0)

    def _free(self, x: Tensor, gradients: Tensor) -> Tensor:
        x = x[:, None]
        return ~(((x <= 0) & (gradients > 0)) | ((x >= 1) & (gradients < 0)))
