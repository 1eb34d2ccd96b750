"""Who says how real a refined image looks: patch by patch, and as a whole."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.encoders import ConvEncoder

FEATURES = 128


class PatchDiscriminator(nn.Module):
    """SimGAN's discriminator: a map of logits, one for each patch (section 2.2), told the label where there is one.

    The label enters by projection (Miyato & Koyama 2018), in every patch.
    """

    def __init__(self, channels: int, classes: int = 0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 96, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(96, 64, 3, 2, 1),
            nn.ReLU(),
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(64, 32, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 1),
            nn.ReLU(),
        )
        self.last = nn.Conv2d(32, 1, 1)
        self.named = nn.Linear(classes, 32, bias=False) if classes else None

    def forward(self, images: Tensor, shares: Tensor | None = None) -> Tensor:
        """(b, c, h, w), and the shares (b, k) of labels -> (b, 1, rows, columns); without shares all are as common."""
        features = self.layers(images)
        logits = self.last(features)
        if self.named is None:
            return logits
        if shares is None:
            each = F.conv2d(features, self.named.weight.T[:, :, None, None])
            return logits + each.logsumexp(1, keepdim=True) - math.log(each.shape[1])
        return logits + (features * self.named(shares)[:, :, None, None]).sum(1, keepdim=True)


class ImageDiscriminator(nn.Module):
    """One logit for an image: sees how strokes lean and what goes together, which no patch shows."""

    def __init__(self, shape: tuple[int, int, int], classes: int = 0):
        super().__init__()
        self.body = ConvEncoder(shape, FEATURES)
        self.last = nn.Linear(FEATURES, 1)
        self.named = nn.Linear(classes, FEATURES, bias=False) if classes else None

    def forward(self, images: Tensor, shares: Tensor | None = None) -> Tensor:
        """(b, c, h, w), and the shares (b, k) of labels -> (b, 1); without shares all are as common."""
        features = F.silu(self.body(images))
        logits = self.last(features)
        if self.named is None:
            return logits
        if shares is None:
            each = features @ self.named.weight
            return logits + each.logsumexp(1, keepdim=True) - math.log(each.shape[1])
        return logits + (features * self.named(shares)).sum(1, keepdim=True)


class MultiScaleDiscriminator(nn.Module):
    """Both of them, or patches alone."""

    def __init__(self, shape: tuple[int, int, int], classes: int, whole: bool):
        super().__init__()
        self.patches = PatchDiscriminator(shape[0], classes)
        self.whole = ImageDiscriminator(shape, classes) if whole else None

    def forward(self, images: Tensor, shares: Tensor | None = None) -> list[Tensor]:
        """(b, c, h, w) -> the logits of each judge; all count alike in a loss, however many they are."""
        judges = [self.patches] if self.whole is None else [self.patches, self.whole]
        return [judge(images, shares) for judge in judges]

    def accuracy(self, images: Tensor, real: bool) -> Tensor:
        """The share of verdicts that are right, where all images are real or none is."""
        return torch.stack([((logits > 0) == real).float().mean() for logits in self(images)]).mean()
