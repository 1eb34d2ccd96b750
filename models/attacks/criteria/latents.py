"""Criteria for outputs that are points, such as codes and images: far from one point, or closer to another.

Outputs are (N, D, ...). Distances are root mean squares over all axes but the first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion

NUDGE = 1e-3
"""Fraction of the radius by which the origin is shifted for gradients, which vanish at the origin itself."""


def rms_distance(one: Tensor, other: Tensor) -> Tensor:
    """(N,): root mean square difference; its gradient is finite where the two are equal."""
    return ((one - other).flatten(1).square().mean(1) + 1e-14).sqrt()


def pattern(like: Tensor) -> Tensor:
    """Fixed pseudo-random signs of the shape of one row of `like`: the direction of that shift."""
    places = torch.arange(like[0].numel(), device=like.device)
    return (1.0 - 2.0 * ((places * 0x9E3779B1 >> 16) & 1)).view_as(like[0])


@dataclass(frozen=True)
class FarFrom(Criterion):
    """The output is at least `radius` (N,) from `origin` (N, D, ...): margin = radius - distance."""

    origin: Tensor
    radius: Tensor

    def margin(self, logits: Tensor) -> Tensor:
        return self.radius - rms_distance(logits, self.origin)

    def loss(self, logits: Tensor) -> Tensor:
        return -self.surfaces(logits, 1)[:, 0]

    def surfaces(self, logits: Tensor, count: int) -> Tensor:
        step = NUDGE * self.radius.view(-1, *[1] * (logits.ndim - 1)) * pattern(logits)
        return (self.radius - rms_distance(logits, self.origin - step))[:, None]

    def facts(self, logits: Tensor) -> Tensor:
        """(N, 2): the distance from the origin, and the radius."""
        return torch.stack([rms_distance(logits, self.origin), self.radius], 1)


@dataclass(frozen=True)
class CloserTo(Criterion):
    """The output is closer to `target` than to `origin`: margin = distance to the target - distance to the origin."""

    target: Tensor
    origin: Tensor

    def margin(self, logits: Tensor) -> Tensor:
        return rms_distance(logits, self.target) - rms_distance(logits, self.origin)

    def loss(self, logits: Tensor) -> Tensor:
        return -rms_distance(logits, self.target)

    def facts(self, logits: Tensor) -> Tensor:
        """(N, 2): the distances to the target and to the origin."""
        return torch.stack([rms_distance(logits, self.target), rms_distance(logits, self.origin)], 1)
