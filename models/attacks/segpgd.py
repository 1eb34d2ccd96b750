"""SegPGD (Gu et al. 2022): pixels that still hold out count most at first, all of them alike in the end."""

import torch
from torch import Tensor

from models.attacks.core.pixel_descent import PixelDescent
from models.attacks.core.run import AttackRun


class SegPGD(PixelDescent):
    name = "segpgd"
    summary = "PGD on all pixels, those still right first and the others later (Gu et al. 2022)"

    def weights(self, run: AttackRun, logits: Tensor, share: float) -> Tensor:
        """1 - l where the pixel holds out, l elsewhere, with l = t / 2T (eq. 4 to 6)."""
        return torch.where(run.criterion.right(logits), 1 - share / 2, share / 2)
