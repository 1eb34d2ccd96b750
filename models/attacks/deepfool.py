"""DeepFool (Moosavi-Dezfooli et al. 2016): step to the nearest class boundary of the linearised model, and again."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import TINY, expand_to
from models.attacks.core.run import AttackRun
from models.attacks.criteria.classification import Misclassified, others, pick

PUSH = 1e-4
"""Added to every distance. Without it iterates converge to the boundary from inside where clipping eats the step."""

REFRESH = 10
"""Steps after which all candidates are looked at again."""


def step_over_closest(values: Tensor, gradients: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """The step over the nearest of the linearised boundaries (N, k), eq. 8 and 9 of the paper, and all distances."""
    dual = 2 if norm == "l2" else 1
    lengths = gradients.flatten(2).norm(p=dual, dim=2).clamp_min(TINY)
    distances = values.abs() / lengths
    best = distances.argmin(1)
    rows = torch.arange(len(values), device=values.device)
    gradient = gradients[rows, best]
    unit = gradient / expand_to(lengths[rows, best], gradient) if norm == "l2" else gradient.sign()
    return -unit * expand_to(distances[rows, best] + PUSH, gradient), distances


class DeepFool(core.Attack):
    name = "deepfool"
    summary = "Steps to the nearest boundary of the linearised model until it is crossed (Moosavi-Dezfooli et al. 2016)"
    norms = ("l2", "linf")
    forwards = "steps + 2"
    backwards = "(steps + 1) * min(candidates - 1, classes - 1)"
    minimal = True

    class Config(core.Config):
        norm: Literal["l2", "linf"] = Field("l2", description="How the perturbation is measured.")
        steps: int = Field(50, ge=1, le=1000, description="Most linearisations.")
        candidates: int = Field(10, ge=2, le=1000, description="Most likely classes among which the nearest is sought.")
        follow: int = Field(3, ge=0, le=1000, description="Classes followed between full looks; 0: all of them.")
        overshoot: float = Field(0.02, ge=0, le=1, description="How far beyond the boundary to go, relatively.")
        free_pixels: bool = Field(False, description="Count on pixels alone that are not at the end of their range.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        state.x, state.total, state.rivals = run.x, torch.zeros_like(run.x), None
        for number in range(config.steps):
            if number % REFRESH == 0:
                state.rivals = None
            values, gradients = run.jacobian(state.x, lambda logits: self._surfaces(run, logits))
            if config.free_pixels:
                gradients = gradients * self._free(state.x, gradients)
            self._rest(run)
            step, distances = step_over_closest(values, gradients, run.threat.norm)
            self._follow(run, distances)
            state.total = state.total + step
            moved = run.x + (1 + config.overshoot) * state.total
            state.x = torch.where(expand_to(run.done, moved), state.x, moved.clamp(0, 1))
            yield
        run.evaluate(state.x)

    def _surfaces(self, run: AttackRun, logits: Tensor) -> Tensor:
        """The boundaries to the candidates, or to those of them that are being followed."""
        state = run.state
        if state.rivals is not None:
            return pick(logits, state.label)[:, None] - logits.gather(1, state.rivals)
        return run.criterion.surfaces(logits, self.config.candidates - 1)

    def _follow(self, run: AttackRun, distances: Tensor) -> None:
        """Of many classes only the nearest are looked at again for a while: each costs a backward pass."""
        criterion, state = run.criterion, run.state
        if (
            state.rivals is None
            and isinstance(criterion, Misclassified)
            and distances.shape[1] > self.config.follow > 0
        ):
            order = others(run.last_logits, criterion.labels).topk(distances.shape[1], 1).indices
            near = distances.topk(self.config.follow, 1, largest=False).indices
            state.label, state.rivals = criterion.labels, order.gather(1, near)

    def _rest(self, run: AttackRun) -> None:
        run.done = run.done | (run.margin < 0)

    def _free(self, x: Tensor, gradients: Tensor) -> Tensor:
        x = x[:, None]
        return ~(((x <= 0) & (gradients > 0)) | ((x >= 1) & (gradients < 0)))
