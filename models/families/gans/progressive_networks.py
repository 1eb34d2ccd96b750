"""Players that start at the smallest grid and gain a level at a time, each faded in (Karras et al. 2018, section 2).

`alpha` lives in a buffer: 0 is the smaller network, 1 the larger one, both exactly.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.gans.equalized_lr import EqualisedConv, EqualisedDownsample, EqualisedLinear, EqualisedUpsample
from models.families.gans.layers import MinibatchStddev, PixelNorm, double, halve, strides
from models.nn.encoders import Size

SLOPE = 0.2


def level_widths(levels: int, finest: int, widest: int) -> list[int]:
    """Channels of each level, coarse to fine: doubled from the finest up to `widest`."""
    return [min(max(widest, finest), finest * 2**level) for level in range(levels)][::-1]


def blend(small: Tensor, large: Tensor, alpha: Tensor) -> Tensor:
    """Between the pictures or features of two levels; exact at both ends."""
    return torch.lerp(small, large, alpha)


class Growing(nn.Module):
    """What both players share: the grids and channels of every level, coarse to fine, and how far the newest is in."""

    def __init__(self, sizes: Sequence[Size], channels: Sequence[int], colours: int):
        super().__init__()
        self.sizes, self.channels, self.colours = list(sizes), list(channels), colours
        self.blocks, self.heads = nn.ModuleList(), nn.ModuleList()
        self.register_buffer("alpha", torch.ones(()))
        self.fading = False

    @property
    def level(self) -> int:
        """Levels grown so far; 0 is the smallest grid."""
        return len(self.blocks)

    def fade(self, alpha: float) -> None:
        """Set how far the newest level is in."""
        self.alpha.fill_(alpha)
        self.fading = alpha < 1


class GrowingBlock(nn.Module):
    """Two convolutions, the first onto the next grid, each with leaky ReLU and pixel norm."""

    def __init__(self, before: int, after: int, size: Size):
        super().__init__()
        self.up, self.conv, self.norm = EqualisedUpsample(before, after, size), EqualisedConv(after, after), PixelNorm()

    def forward(self, features: Tensor) -> Tensor:
        features = self.norm(F.leaky_relu(self.up(features), SLOPE))
        return self.norm(F.leaky_relu(self.conv(features), SLOPE))


class GrowingGenerator(Growing):
    """Latents (b, d) on the sphere -> images (b, c, h, w) in [-1, 1] at the present grid.

    Squashed, unlike the paper's: see StyleGenerator.
    """

    def __init__(self, latent_dim: int, sizes: Sequence[Size], channels: Sequence[int], colours: int):
        super().__init__(sizes, channels, colours)
        grid = channels[0], *sizes[0]
        # the paper's gain: latents of unit mean square leave the dense layer at the scale of a 4x4 convolution
        self.first = EqualisedLinear(latent_dim, math.prod(grid), gain=math.sqrt(2) / 4)
        self.conv, self.norm = EqualisedConv(channels[0], channels[0]), PixelNorm()
        self.heads.append(EqualisedConv(channels[0], colours, 1, gain=1))

    def grow(self) -> None:
        """One level more."""
        before, after = self.channels[self.level : self.level + 2]
        self.blocks.append(GrowingBlock(before, after, self.sizes[self.level + 1]))
        self.heads.append(EqualisedConv(after, self.colours, 1, gain=1))

    def forward(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        features = self.first(latents).unflatten(1, (self.channels[0], *self.sizes[0]))
        features = self.norm(F.leaky_relu(features, SLOPE))
        features = self.norm(F.leaky_relu(self.conv(features), SLOPE))
        for block in self.blocks[:-1]:
            features = block(features)
        if not self.blocks:
            return self._picture(features, 0)
        image = self._picture(self.blocks[-1](features), self.level)
        if not self.fading:
            return image
        return blend(double(self._picture(features, self.level - 1), self.sizes[self.level]), image, self.alpha)

    def _picture(self, features: Tensor, level: int) -> Tensor:
        return torch.tanh(self.heads[level](features))


class ShrinkingBlock(nn.Module):
    """Two convolutions with leaky ReLU, the second onto the smaller grid."""

    def __init__(self, before: int, after: int, factors: Size):
        super().__init__()
        self.conv, self.down = EqualisedConv(before, before), EqualisedDownsample(before, after, factors)
        self.factors = factors

    def forward(self, features: Tensor) -> Tensor:
        features = F.leaky_relu(self.conv(features), SLOPE)
        return F.leaky_relu(self.down(features), SLOPE)


class GrowingDiscriminator(Growing):
    """Images at the present grid -> one logit each; the mirror of the generator, with the spread of the batch."""

    def __init__(self, sizes: Sequence[Size], channels: Sequence[int], colours: int):
        super().__init__(sizes, channels, colours)
        self.heads.append(EqualisedConv(colours, channels[0], 1))
        self.stddev = MinibatchStddev()
        self.conv = EqualisedConv(channels[0] + 1, channels[0])
        self.dense = EqualisedLinear(channels[0] * math.prod(sizes[0]), channels[0])
        self.last = EqualisedLinear(channels[0], 1, gain=1)

    def grow(self) -> None:
        """One level more."""
        after, before = self.channels[self.level : self.level + 2]
        factors = strides(self.sizes[self.level], self.sizes[self.level + 1])
        self.blocks.append(ShrinkingBlock(before, after, factors))
        self.heads.append(EqualisedConv(self.colours, before, 1))

    def features(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b, c, h, w) at the smallest grid."""
        features = self._seen(images, self.level)
        if self.blocks:
            newest = self.blocks[-1]
            features = newest(features)
            if self.fading:
                features = blend(self._seen(halve(images, newest.factors), self.level - 1), features, self.alpha)
        for level in range(self.level - 2, -1, -1):
            features = self.blocks[level](features)
        return features

    def _seen(self, images: Tensor, level: int) -> Tensor:
        return F.leaky_relu(self.heads[level](images), SLOPE)

    def judge(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b,) logits."""
        features = F.leaky_relu(self.conv(self.stddev(features)), SLOPE)
        return self.last(F.leaky_relu(self.dense(features.flatten(1)), SLOPE))[:, 0]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.judge(self.features(images))
