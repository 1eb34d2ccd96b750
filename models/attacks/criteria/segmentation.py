"""When a segmentation counts as adversarial: a fraction of the pixels is wrong, or has its target class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion, others, pick


@dataclass(frozen=True)
class FractionOfPixels(Criterion):
    """Segmentation: at least `threshold` of the pixels wrong (or, with `targets`, turned to their target).

    Logits are (N, K, H, W), labels and targets (N, H, W) int64; pixels labelled `ignore_index` do not count.
    """

    labels: Tensor
    targets: Tensor | None = None
    threshold: float | Tensor = 0.99
    """One for all images, or (N,)."""
    ignore_index: int = 255

    def counted(self) -> Tensor:
        """(N, H, W): the pixels that count."""
        return self.labels != self.ignore_index

    def right(self, logits: Tensor) -> Tensor:
        """(N, H, W): counted pixels not yet as the attacker wants them."""
        guess = logits.argmax(1)
        return self.counted() & (guess == self.labels if self.targets is None else guess != self.targets)

    def margin(self, logits: Tensor) -> Tensor:
        """Fraction still right - (1 - threshold), a hair below so that reaching the threshold is enough."""
        total = self.counted().flatten(1).sum(1).clamp_min(1)
        return self.right(logits).flatten(1).sum(1) / total - (1 - self.threshold) - 1e-6

    def entropy(self, logits: Tensor) -> Tensor:
        """(N, H, W): cross-entropy of each counted pixel with its label or, where there are targets, its target."""
        aim = torch.where(self.counted(), self.labels if self.targets is None else self.targets, 0)
        return torch.nn.functional.cross_entropy(logits, aim, reduction="none") * self.counted()

    def loss(self, logits: Tensor) -> Tensor:
        """Cross-entropy summed over the counted pixels (away from the labels, or towards the targets)."""
        return self.weighted(logits, torch.ones_like(self.labels, dtype=logits.dtype))

    def weighted(self, logits: Tensor, weights: Tensor) -> Tensor:
        """(N,): the loss with a weight for each pixel (N, H, W)."""
        return (self.entropy(logits) * weights).flatten(1).sum(1) * (1 if self.targets is None else -1)

    def margin_loss(self, logits: Tensor) -> Tensor:
        return self.dag_loss(logits)

    def dag_loss(self, logits: Tensor) -> Tensor:
        """(N,), to be climbed: over the pixels still right, the wanted logit less the right one (Xie et al. 2017).

        Wanted is the target or, without one, the strongest of the other classes.
        """
        aim = torch.where(self.counted(), self.labels if self.targets is None else self.targets, 0)
        chosen, rest = pick(logits, aim), others(logits, aim).amax(1)
        gain = rest - chosen if self.targets is None else chosen - rest
        return torch.where(self.right(logits), gain, 0).flatten(1).sum(1)
