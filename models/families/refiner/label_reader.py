"""Reads labels in two domains of which only one has any: what keeps refined images true to their label."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.augment import elastic_warp, jitter
from models.nn.encoders import ConvEncoder, MLPEncoder, default_body

SURE = 0.9  # probability from which a label read in a real image is taught
RISE = 0.2  # share of the run over which such labels come to count fully
MEMORY = 0.98  # of the running shares of labels, for a batch
MOST = 20.0  # times that a label seldom read is made more probable


class LabelReader(nn.Module):
    """Learns from labelled simulated images, and in real ones to give bent views the label of the plain one.

    The second part is the consistency of Sohn et al. 2020 (FixMatch, eq. 4): it never sees a label of a real image.
    Nor does it ever see a refined one: a reader that learned from those would come to agree with any of them.
    With `alike` what it reads in real images is corrected until labels are about as common there as among simulated
    ones (Berthelot et al. 2020, distribution alignment): else one class may swallow another that looks like it.
    """

    training_only = True

    def __init__(self, shape: tuple[int, int, int], classes: int, alike: bool = True):
        super().__init__()
        conv = default_body(shape) == "conv"
        self.body = ConvEncoder(shape, classes, 16) if conv else MLPEncoder(shape, classes, (128,))
        self.alike = alike
        for name in ("told", "read"):  # how common labels are among simulated images, and as read in real ones
            self.register_buffer(name, torch.full((classes,), 1 / classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)

    def corrected(self, shares: Tensor) -> Tensor:
        """(b, k): the shares of labels read in real images, as they are if labels are as common as they should be."""
        if not self.alike:
            return shares
        shares = shares * (self.told / torch.maximum(self.read, self.told / MOST).clamp_min(1e-12))
        return shares / shares.sum(1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def shares(self, real: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, k): how probable each label is in real images."""
        return self.corrected(self(real).softmax(1))

    def loss(self, simulated: Tensor, labels: Tensor, real: Tensor, progress: float, draws: torch.Generator) -> Tensor:
        """Cross-entropy of `labels` in bent simulated images, and of the labels it is sure of in bent real ones."""
        with torch.no_grad():
            shares = self(jitter(real, draws)).softmax(1)
            self.read.lerp_(shares.mean(0), 1 - MEMORY)
            self.told.lerp_(F.one_hot(labels, len(self.told)).to(shares.dtype).mean(0), 1 - MEMORY)
            sure, read = self.corrected(shares).max(1)
        views = jitter(elastic_warp(torch.cat([simulated, real]), draws), draws)
        known, guessed = self(views).split([len(simulated), len(real)])
        unsure = F.cross_entropy(guessed, read, reduction="none") * (sure > SURE)
        return F.cross_entropy(known, labels) + min(1.0, progress / RISE) * unsure.mean()
