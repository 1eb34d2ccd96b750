"""Criteria for regressors: the estimate is shifted far enough, or reaches a target value.

Outputs are (N, 1, 1), in the unit of the training targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion


@dataclass(frozen=True)
class Shifted(Criterion):
    """The estimate differs from `origin` (N,) by at least `radius` (N,): upwards (`way` 1), downwards (-1), either (0).

    margin = radius - (estimate - origin) * way, or radius - |estimate - origin| for way 0.
    """

    origin: Tensor
    radius: Tensor
    way: Tensor

    def margin(self, logits: Tensor) -> Tensor:
        change = logits.flatten(1)[:, 0] - self.origin
        # at the origin an absolute value has no gradient, so way 0 starts upwards
        return self.radius - torch.where(self.way == 0, torch.where(change >= 0, change, -change), change * self.way)

    def loss(self, logits: Tensor) -> Tensor:
        return -self.margin(logits)


@dataclass(frozen=True)
class ReachesValue(Criterion):
    """The estimate lies within `radius` (N,) of `target` (N,): margin = |estimate - target| - radius."""

    target: Tensor
    origin: Tensor
    radius: Tensor

    def margin(self, logits: Tensor) -> Tensor:
        return (logits.flatten(1)[:, 0] - self.target).abs() - self.radius

    def loss(self, logits: Tensor) -> Tensor:
        return -self.margin(logits)
