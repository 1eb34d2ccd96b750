"""Criteria on models that answer with one number: moved far enough, or brought close to another number.

Outputs are (N, 1, 1), numbers in a unit of their own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion


@dataclass(frozen=True)
class Shifted(Criterion):
    """The number lies at least `radius` (N,) off `origin` (N,): above, below where `way` (N,) is -1, either for 0.

    margin = radius - (number - origin) * way.
    """

    origin: Tensor
    radius: Tensor
    way: Tensor

    def margin(self, logits: Tensor) -> Tensor:
        change = logits.flatten(1)[:, 0] - self.origin
        # at the origin itself either side would do: upwards, where an absolute value has no gradient
        return self.radius - torch.where(self.way == 0, torch.where(change >= 0, change, -change), change * self.way)

    def loss(self, logits: Tensor) -> Tensor:
        return -self.margin(logits)


@dataclass(frozen=True)
class ReachesValue(Criterion):
    """The number lies within `radius` (N,) of `target` (N,): margin = distance - radius."""

    target: Tensor
    origin: Tensor
    radius: Tensor

    def margin(self, logits: Tensor) -> Tensor:
        return (logits.flatten(1)[:, 0] - self.target).abs() - self.radius

    def loss(self, logits: Tensor) -> Tensor:
        return -self.margin(logits)
