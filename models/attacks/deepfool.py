"""DeepFool (Moosavi-Dezfooli et al. 2016): steps to the closest decision boundary of the linearised model."""

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
"""Added to every distance. Without it, iterates that are clipped converge to the boundary from the wrong side."""

REFRESH = 10
"""Steps after which the boundaries to all candidates are computed again."""


def step_over_closest(values: Tensor, gradients: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """The step over the closest of the linearised boundaries f_k (N, k), and the distances to all of them.

    l = argmin_k |f_k| / ||grad f_k||_q  (eq. 8), step = -|f_l| / ||grad f_l||_2^2 * grad f_l  (eq. 9; q = 2 for l2).
    For linf: q = 1 and step = -|f_l| / ||grad f_l||_1 * sign(grad f_l).
    """
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
    summary = "Steps to the closest boundary of the linearised model until it is crossed (Moosavi-Dezfooli et al. 2016)"
    norms = ("l2", "linf")
    forwards = "steps + 2"
    backwards = "(steps + 1) * min(candidates - 1, classes - 1)"
    minimal = True

    class Config(core.Config):
        norm: Literal["l2", "linf"] = Field("l2", description="Norm of the perturbation.")
        steps: int = Field(50, ge=1, le=1000, description="Maximum iterations.")
        candidates: int = Field(10, ge=2, le=1000, description="Number of most likely classes considered.")
        follow: int = Field(
            3,
            ge=0,
            le=1000,
            description="Closest classes considered between full updates every 10 steps; 0: always all.",
        )
        overshoot: float = Field(
            0.02, ge=0, le=1, description="Fraction by which the perturbation overshoots the boundary."
        )
        free_pixels: bool = Field(False, description="Ignore values whose step would leave the pixel range.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        state.x, state.total, state.rivals = run.x, torch.zeros_like(run.x), None
        for number in range(config.steps):
            if number % REFRESH == 0:
                state.rivals = None
            values, gradients = run.jacobian(state.x, lambda logits: self._surfaces(run, logits))
            if config.free_pixels:
                gradients = gradients * self._free(state.x, gradients)
            run.done = run.done | (run.margin < 0)
            step, distances = step_over_closest(values, gradients, run.threat.norm)
            self._restrict(run, distances)
            state.total = state.total + step
            # x = x_0 + (1 + overshoot) * sum of all steps
            aim = run.x + (1 + config.overshoot) * state.total
            state.x = torch.where(expand_to(run.done, aim), state.x, aim.clamp(0, 1))
            yield
        run.evaluate(state.x)

    def _surfaces(self, run: AttackRun, logits: Tensor) -> Tensor:
        """f_k = z_y - z_k for the candidates, or for the closest of them."""
        state = run.state
        if state.rivals is not None:
            return pick(logits, state.label)[:, None] - logits.gather(1, state.rivals)
        return run.criterion.surfaces(logits, self.config.candidates - 1)

    def _restrict(self, run: AttackRun, distances: Tensor) -> None:
        """Restrict the next iterations to the closest classes, because each class costs a backward pass."""
        criterion, state = run.criterion, run.state
        if (
            state.rivals is None
            and isinstance(criterion, Misclassified)
            and distances.shape[1] > self.config.follow > 0
        ):
            order = others(run.last_logits, criterion.labels).topk(distances.shape[1], 1).indices
            closest = distances.topk(self.config.follow, 1, largest=False).indices
            state.label, state.rivals = criterion.labels, order.gather(1, closest)

    def _free(self, x: Tensor, gradients: Tensor) -> Tensor:
        x = x[:, None]
        return ~(((x <= 0) & (gradients > 0)) | ((x >= 1) & (gradients < 0)))
