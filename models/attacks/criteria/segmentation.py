"""When a segmentation counts as adversarial: a fraction of the pixels is wrong, or has its target class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion, others, pick


@dataclass(frozen=True)
class FractionOfPixels(Criterion):
    """At least the fraction `threshold` of the pixels is misclassified or, with `targets`, has its target class.

    Logits are (N, K, H, W), labels and targets (N, H, W) int64. Pixels labelled `ignore_index` do not count.
    """

    labels: Tensor
    targets: Tensor | None = None
    threshold: float | Tensor = 0.99
    """A number for all images, or (N,)."""
    ignore_index: int = 255

    def counted(self) -> Tensor:
        """(N, H, W): pixels that count."""
        return self.labels != self.ignore_index

    def remaining(self, logits: Tensor) -> Tensor:
        """(N, H, W): counted pixels still classified correctly or, with targets, not yet as their target."""
        guess = logits.argmax(1)
        return self.counted() & (guess == self.labels if self.targets is None else guess != self.targets)

    def margin(self, logits: Tensor) -> Tensor:
        """Fraction of remaining pixels - (1 - threshold) - 1e-6: reaching the threshold exactly is a success."""
        total = self.counted().flatten(1).sum(1).clamp_min(1)
        return self.remaining(logits).flatten(1).sum(1) / total - (1 - self.threshold) - 1e-6

    def entropy(self, logits: Tensor) -> Tensor:
        """(N, H, W): cross-entropy of each counted pixel with its target, or else its label."""
        aim = torch.where(self.counted(), self.labels if self.targets is None else self.targets, 0)
        return torch.nn.functional.cross_entropy(logits, aim, reduction="none") * self.counted()

    def loss(self, logits: Tensor) -> Tensor:
        """Cross-entropy with the labels, or minus that with the targets, summed over the counted pixels."""
        return self.weighted(logits, torch.ones_like(self.labels, dtype=logits.dtype))

    def weighted(self, logits: Tensor, weights: Tensor) -> Tensor:
        """(N,): the loss with weights of the pixels (N, H, W)."""
        return (self.entropy(logits) * weights).flatten(1).sum(1) * (1 if self.targets is None else -1)

    def margin_loss(self, logits: Tensor) -> Tensor:
        return self.dag_loss(logits)

    def dag_loss(self, logits: Tensor) -> Tensor:
        """(N,): sum over the remaining pixels of z_target - z_label (Xie et al. 2017, eq. 1). To be increased.

        Without targets, the target of a pixel is its strongest other class.
        """
        aim = torch.where(self.counted(), self.labels if self.targets is None else self.targets, 0)
        own, rival = pick(logits, aim), others(logits, aim).amax(1)
        gain = rival - own if self.targets is None else own - rival
        return torch.where(self.remaining(logits), gain, 0).flatten(1).sum(1)
