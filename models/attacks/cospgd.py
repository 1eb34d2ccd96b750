"""CosPGD (Agnihotri et al. 2024): pixels are weighted by the cosine similarity of prediction and label."""

import torch.nn.functional as F
from torch import Tensor

from models.attacks.core.pixel_descent import PixelDescent
from models.attacks.core.run import AttackRun


class CosPGD(PixelDescent):
    name = "cospgd"
    summary = "PGD on all pixels, weighted by the cosine of prediction and label (Agnihotri et al. 2024)"

    def weights(self, run: AttackRun, logits: Tensor, share: float) -> Tensor:
        """cos(softmax(z), one_hot(label)), or 1 - cos(softmax(z), one_hot(target)) (eq. 6 and 7)."""
        criterion, chances = run.criterion, logits.softmax(1)
        aim = criterion.labels if criterion.targets is None else criterion.targets
        aim = aim.clamp(0, logits.shape[1] - 1)
        cosine = F.cosine_similarity(chances, F.one_hot(aim, logits.shape[1]).movedim(3, 1).to(chances), dim=1)
        return cosine if criterion.targets is None else 1 - cosine
