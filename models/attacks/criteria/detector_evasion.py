"""When an image fools a classifier and its detector at once, and two ways to climb towards that."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion, Misclassified

BELOW = 0.1
"""Where to aim, in units under the threshold: a little below is safer than just below."""


@dataclass(frozen=True)
class UndetectedMisclassification(Criterion):
    """Misclassified, and scored at most `threshold`: outputs are logits (N, K) and then the suspicion in a last column.

    `unit` is a distance of scores that means something. The loss adds both ends up (Carlini & Wagner 2017b).
    """

    labels: Tensor
    threshold: float
    unit: float
    weight: float = 4.0

    def margin(self, logits: Tensor) -> Tensor:
        return torch.maximum(self.plain.margin(logits[:, :-1]), self.over(logits))

    def loss(self, logits: Tensor) -> Tensor:
        return self.plain.loss(logits[:, :-1]) - self.weight * torch.relu(self.over(logits) + BELOW)

    def check(self, logits: Tensor) -> None:
        self.plain.check(logits[:, :-1])

    def over(self, logits: Tensor) -> Tensor:
        """(N,): how far the score is above the threshold, in units."""
        return (logits[:, -1] - self.threshold) / self.unit

    @property
    def plain(self) -> Misclassified:
        return Misclassified(self.labels)


class SelectiveLoss(UndetectedMisclassification):
    """The two ends in turns (Bryniarski et al. 2022): away from the class while it stands, then under the threshold, so
    that neither gradient drowns the other.
    """

    def loss(self, logits: Tensor) -> Tensor:
        plain = logits[:, :-1]
        return torch.where(self.plain.margin(plain) < 0, -self.over(logits), self.plain.loss(plain))
