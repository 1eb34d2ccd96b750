"""Discriminators of the refiner: one on patches, one on whole images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.encoders import ConvEncoder

FEATURES = 128


class PatchDiscriminator(nn.Module):
    """SimGAN's discriminator: a map of logits, one for each patch (Shrivastava et al. 2017, section 2.2).

    With `classes` it is conditional: the label enters every patch by projection (Miyato & Koyama 2018). The paper's
    `width` is 96.
    """

    def __init__(self, channels: int, classes: int = 0, width: int = 96):
        super().__init__()
        inner = width * 2 // 3
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, inner, 3, 2, 1),
            nn.ReLU(),
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(inner, 32, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 1),
            nn.ReLU(),
        )
        self.last = nn.Conv2d(32, 1, 1)
        self.named = nn.Linear(classes, 32, bias=False) if classes else None

    def forward(self, images: Tensor, label_probs: Tensor | None = None) -> Tensor:
        """(b, c, h, w) and label probabilities (b, k) -> logits (b, 1, rows, columns); None means uniform labels."""
        features = self.layers(images)
        logits = self.last(features)
        if self.named is None:
            return logits
        if label_probs is None:  # log of the mean over labels of exp(logit)
            each = F.conv2d(features, self.named.weight.T[:, :, None, None])
            return logits + each.logsumexp(1, keepdim=True) - math.log(each.shape[1])
        return logits + (features * self.named(label_probs)[:, :, None, None]).sum(1, keepdim=True)


class ImageDiscriminator(nn.Module):
    """One logit per image: judges the slant of strokes and the arrangement of parts, which no patch shows."""

    def __init__(self, shape: tuple[int, int, int], classes: int = 0):
        super().__init__()
        self.body = ConvEncoder(shape, FEATURES)
        self.last = nn.Linear(FEATURES, 1)
        self.named = nn.Linear(classes, FEATURES, bias=False) if classes else None

    def forward(self, images: Tensor, label_probs: Tensor | None = None) -> Tensor:
        """(b, c, h, w) and label probabilities (b, k) -> logits (b, 1); None means uniform labels."""
        features = F.silu(self.body(images))
        logits = self.last(features)
        if self.named is None:
            return logits
        if label_probs is None:  # log of the mean over labels of exp(logit)
            each = features @ self.named.weight
            return logits + each.logsumexp(1, keepdim=True) - math.log(each.shape[1])
        return logits + (features * self.named(label_probs)).sum(1, keepdim=True)


class MultiScaleDiscriminator(nn.Module):
    """The patch discriminator and, if `whole`, the image discriminator."""

    def __init__(self, shape: tuple[int, int, int], classes: int, whole: bool, width: int = 96):
        super().__init__()
        self.patches = PatchDiscriminator(shape[0], classes, width)
        self.whole = ImageDiscriminator(shape, classes) if whole else None

    def forward(self, images: Tensor, label_probs: Tensor | None = None) -> list[Tensor]:
        """(b, c, h, w) -> the logits of each discriminator; their mean losses have equal weight."""
        discriminators = [self.patches] if self.whole is None else [self.patches, self.whole]
        return [discriminator(images, label_probs) for discriminator in discriminators]

    def accuracy(self, images: Tensor, real: bool) -> Tensor:
        """Fraction of logits with the right sign, for images that are all real or all refined."""
        return torch.stack([((logits > 0) == real).float().mean() for logits in self(images)]).mean()
