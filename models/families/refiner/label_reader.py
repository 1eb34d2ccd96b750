"""A classifier for both domains, trained with labels of one: it keeps refined images true to their label."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.augment import elastic_warp, jitter
from models.nn.encoders import ConvEncoder, MLPEncoder, default_body

CONFIDENT = 0.9  # minimum probability of a pseudo-label of a real image
RAMP = 0.2  # fraction of the run in which the weight of pseudo-labels rises to 1
MOMENTUM = 0.98  # of the running label frequencies, per batch
MAX_CORRECTION = 20.0  # maximum factor on the probability of a label


class LabelReader(nn.Module):
    """Trained on labelled simulated images, and on pseudo-labels of real ones (FixMatch, Sohn et al. 2020).

    It never sees labels of real images, nor refined images: trained on those it would agree with any refinement. With
    `alike`, its predictions for real images are corrected until labels are about as frequent there as among simulated
    ones (distribution alignment, Berthelot et al. 2020); otherwise one class may absorb another that looks like it.
    """

    training_only = True

    def __init__(self, shape: tuple[int, int, int], classes: int, alike: bool = True):
        super().__init__()
        conv = default_body(shape) == "conv"
        self.body = ConvEncoder(shape, classes, 16) if conv else MLPEncoder(shape, classes, (128,))
        self.alike = alike
        for name in ("told", "read"):  # label frequencies: of simulated images, and predicted for real ones
            self.register_buffer(name, torch.full((classes,), 1 / classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)

    def corrected(self, probs: Tensor) -> Tensor:
        """Label probabilities (b, k) of real images, corrected for the difference of the label frequencies."""
        if not self.alike:
            return probs
        probs = probs * (self.told / torch.maximum(self.read, self.told / MAX_CORRECTION).clamp_min(1e-12))
        return probs / probs.sum(1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def label_probs(self, real: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, k): corrected label probabilities of real images."""
        return self.corrected(self(real).softmax(1))

    def loss(self, simulated: Tensor, labels: Tensor, real: Tensor, progress: float, draws: torch.Generator) -> Tensor:
        """Cross-entropy of augmented simulated images with `labels`, and of augmented real ones with pseudo-labels."""
        with torch.no_grad():
            probs = self(jitter(real, draws)).softmax(1)
            self.read.lerp_(probs.mean(0), 1 - MOMENTUM)
            self.told.lerp_(F.one_hot(labels, len(self.told)).to(probs.dtype).mean(0), 1 - MOMENTUM)
            confidence, pseudo_labels = self.corrected(probs).max(1)
        views = jitter(elastic_warp(torch.cat([simulated, real]), draws), draws)
        simulated_logits, real_logits = self(views).split([len(simulated), len(real)])
        # l_u = mean 1(max q >= tau) H(argmax q, p(strongly augmented))  (Sohn et al. 2020, eq. 4)
        unsupervised = F.cross_entropy(real_logits, pseudo_labels, reduction="none") * (confidence > CONFIDENT)
        return F.cross_entropy(simulated_logits, labels) + min(1.0, progress / RAMP) * unsupervised.mean()
