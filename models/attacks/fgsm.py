"""Fast gradient sign method (Goodfellow et al. 2015): one step of length eps along the gradient."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import expand_to
from models.attacks.core.run import AttackRun
from models.capabilities import Classifies, DetectsObjects, Segments


def fill(x: Tensor, gradient: Tensor, eps: Tensor) -> Tensor:
    """argmax of <gradient, d> over ||d||_1 <= eps and x + d in [0, 1] (Croce & Hein 2021, prop. 2.2).

    The values with the largest gradient move first, each to the end of the pixel range.
    """
    flat = gradient.flatten(1)
    room = torch.where(flat > 0, 1 - x.flatten(1), x.flatten(1)) * (flat != 0)
    order = flat.abs().argsort(dim=1, descending=True, stable=True)
    sorted_room = room.gather(1, order)
    used = sorted_room.cumsum(1) - sorted_room
    length = torch.minimum(sorted_room, (eps[:, None] - used).clamp_min(0))
    return (torch.zeros_like(flat).scatter(1, order, length) * flat.sign()).view_as(x)


class FGSM(core.Attack):
    name = "fgsm"
    summary = "One step along the sign of the gradient (Goodfellow et al. 2015); with l2 or l1 the fast gradient method"
    norms = ("linf", "l2", "l1")
    forwards = "2"
    backwards = "1"
    victims = (Classifies, Segments, DetectsObjects)
    warm_start = False

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="Norm of the perturbation.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        _, gradient = run.value_and_grad(run.x)
        if run.threat.norm == "l1":
            step = fill(run.x, gradient, run.radius)
        else:
            # x + eps * sign(gradient) for linf, x + eps * gradient / ||gradient||_2 for l2
            step = run.threat.geometry.steepest(gradient) * expand_to(run.radius, run.x)
        run.set_result(run.threat.project(run.x, run.x + step))
        yield
