"""SegPGD (Gu et al. 2022): pixels still classified correctly have the larger weight, equal to the others at the end."""

import torch
from torch import Tensor

from models.attacks.core.pixel_descent import PixelDescent
from models.attacks.core.run import AttackRun


class SegPGD(PixelDescent):
    name = "segpgd"
    summary = "PGD on all pixels, weighted by whether they are still classified correctly (Gu et al. 2022)"

    def weights(self, run: AttackRun, logits: Tensor, share: float) -> Tensor:
        """1 - lambda for pixels not yet adversarial, lambda for the others, lambda = t / 2T (eq. 4 to 6)."""
        return torch.where(run.criterion.remaining(logits), 1 - share / 2, share / 2)
