"""Reads labels in two domains of which only one has any: what keeps refined images true to their label."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.identity import changed
from models.nn.augment import bent
from models.nn.bodies import ConvEncoder, FlatEncoder, default_body

SURE = 0.9  # probability from which a label read in a real image is taught
RISE = 0.3  # share of the run over which such labels come to count fully


class Annotator(nn.Module):
    """Learns from labelled simulated images, and in real ones to give bent views the label of the plain one.

    The second part is the consistency of Sohn et al. 2020 (FixMatch, eq. 4): it never sees a label of a real image.
    Nor does it ever see a refined one: a reader that learned from those would come to agree with any of them.
    """

    training_only = True

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        conv = default_body(shape) == "conv"
        self.body = ConvEncoder(shape, classes, 16) if conv else FlatEncoder(shape, classes, (128,))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)

    def loss(self, simulated: Tensor, labels: Tensor, real: Tensor, progress: float, draws: torch.Generator) -> Tensor:
        """Cross-entropy of `labels` in bent simulated images, and of the labels it is sure of in bent real ones."""
        with torch.no_grad():
            sure, read = self(changed(real, draws)).softmax(1).max(1)
        views = changed(bent(torch.cat([simulated, real]), draws), draws)
        known, guessed = self(views).split([len(simulated), len(real)])
        unsure = F.cross_entropy(guessed, read, reduction="none") * (sure > SURE)
        return F.cross_entropy(known, labels) + min(1.0, progress / RISE) * unsure.mean()
