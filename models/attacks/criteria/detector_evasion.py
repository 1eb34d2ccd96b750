"""Criteria for attacks that evade a classifier and its detector of adversarial images at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion, Misclassified

TARGET_BELOW = 0.1
"""Distance below the threshold that the loss aims at, in units: a score just below may cross it by rounding."""


@dataclass(frozen=True)
class UndetectedMisclassification(Criterion):
    """Misclassified, with a detector score of at most `threshold`. Outputs (N, K + 1) are logits and the score.

    `unit` is the scale of the scores. loss = loss_class - weight * ((score - threshold) / unit + 0.1)+
    (Carlini & Wagner 2017b).
    """

    labels: Tensor
    threshold: float
    unit: float
    weight: float = 4.0

    def margin(self, logits: Tensor) -> Tensor:
        return torch.maximum(self.plain.margin(logits[:, :-1]), self.over(logits))

    def loss(self, logits: Tensor) -> Tensor:
        return self.plain.loss(logits[:, :-1]) - self.weight * torch.relu(self.over(logits) + TARGET_BELOW)

    def check(self, logits: Tensor) -> None:
        self.plain.check(logits[:, :-1])

    def over(self, logits: Tensor) -> Tensor:
        """(N,): (score - threshold) / unit."""
        return (logits[:, -1] - self.threshold) / self.unit

    @property
    def plain(self) -> Misclassified:
        return Misclassified(self.labels)


class SelectiveLoss(UndetectedMisclassification):
    """Selective gradients (Bryniarski et al. 2022): the loss of the class until the image is misclassified, then of the
    detector, so that neither gradient dominates the other.
    """

    def loss(self, logits: Tensor) -> Tensor:
        plain = logits[:, :-1]
        return torch.where(self.plain.margin(plain) < 0, -self.over(logits), self.plain.loss(plain))
