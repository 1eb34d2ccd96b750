"""Networks that start at the smallest size and gain a level at a time, each faded in (Karras et al. 2018, section 2).

The buffer `alpha` is the share of the newest level: at 0 the network equals the smaller one, at 1 the larger, exactly.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.gans.equalized_lr import EqualizedConv, EqualizedDownsample, EqualizedLinear, EqualizedUpsample
from models.families.gans.layers import MinibatchStddev, PixelNorm, double, halve, strides
from models.nn.encoders import Size

SLOPE = 0.2


def level_widths(levels: int, finest: int, widest: int) -> list[int]:
    """Channels of each level, coarse to fine: `finest`, doubled from level to level up to `widest`."""
    return [min(max(widest, finest), finest * 2**level) for level in range(levels)][::-1]


def blend(small: Tensor, large: Tensor, alpha: Tensor) -> Tensor:
    """(1 - alpha) small + alpha large, exact at both ends; images or features of two levels."""
    return torch.lerp(small, large, alpha)


class GrowingNetwork(nn.Module):
    """The part that G and D share: sizes and channels of every level, coarse to fine, and the newest level's alpha."""

    def __init__(self, sizes: Sequence[Size], channels: Sequence[int], colours: int):
        super().__init__()
        self.sizes, self.channels, self.colours = list(sizes), list(channels), colours
        self.blocks, self.heads = nn.ModuleList(), nn.ModuleList()
        self.register_buffer("alpha", torch.ones(()))
        self.fading = False

    @property
    def level(self) -> int:
        """Number of levels added; 0 is the smallest size."""
        return len(self.blocks)

    def fade(self, alpha: float) -> None:
        """Set the alpha of the newest level, in [0, 1]."""
        self.alpha.fill_(alpha)
        self.fading = alpha < 1


class GrowingBlock(nn.Module):
    """Two convolutions, the first onto the next size, each with leaky ReLU and pixel norm."""

    def __init__(self, in_channels: int, out_channels: int, size: Size, low_pass: bool):
        super().__init__()
        self.up = EqualizedUpsample(in_channels, out_channels, size, low_pass)
        self.conv, self.norm = EqualizedConv(out_channels, out_channels), PixelNorm()

    def forward(self, features: Tensor) -> Tensor:
        features = self.norm(F.leaky_relu(self.up(features), SLOPE))
        return self.norm(F.leaky_relu(self.conv(features), SLOPE))


class GrowingGenerator(GrowingNetwork):
    """Latents (b, d) on the sphere -> images (b, c, h, w) in [-1, 1] at the size of the present level.

    Images pass a tanh, unlike the paper's: see StyleGenerator.
    """

    def __init__(
        self, latent_dim: int, sizes: Sequence[Size], channels: Sequence[int], colours: int, low_pass: bool = True
    ):
        super().__init__(sizes, channels, colours)
        self.low_pass = low_pass
        grid = channels[0], *sizes[0]
        # the paper's gain, for a first layer that is a 4x4 convolution of latents of unit mean square
        self.first = EqualizedLinear(latent_dim, math.prod(grid), gain=math.sqrt(2) / 4)
        self.conv, self.norm = EqualizedConv(channels[0], channels[0]), PixelNorm()
        self.heads.append(EqualizedConv(channels[0], colours, 1, gain=1))

    def grow(self) -> None:
        """Add a level."""
        in_channels, out_channels = self.channels[self.level : self.level + 2]
        self.blocks.append(GrowingBlock(in_channels, out_channels, self.sizes[self.level + 1], self.low_pass))
        self.heads.append(EqualizedConv(out_channels, self.colours, 1, gain=1))

    def forward(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        features = self.first(latents).unflatten(1, (self.channels[0], *self.sizes[0]))
        features = self.norm(F.leaky_relu(features, SLOPE))
        features = self.norm(F.leaky_relu(self.conv(features), SLOPE))
        for block in self.blocks[:-1]:
            features = block(features)
        if not self.blocks:
            return self._to_image(features, 0)
        image = self._to_image(self.blocks[-1](features), self.level)
        if not self.fading:
            return image
        return blend(double(self._to_image(features, self.level - 1), self.sizes[self.level]), image, self.alpha)

    def _to_image(self, features: Tensor, level: int) -> Tensor:
        return torch.tanh(self.heads[level](features))


class ShrinkingBlock(nn.Module):
    """Two convolutions with leaky ReLU, the second onto the smaller size."""

    def __init__(self, in_channels: int, out_channels: int, factors: Size):
        super().__init__()
        self.conv = EqualizedConv(in_channels, in_channels)
        self.down = EqualizedDownsample(in_channels, out_channels, factors)
        self.factors = factors

    def forward(self, features: Tensor) -> Tensor:
        features = F.leaky_relu(self.conv(features), SLOPE)
        return F.leaky_relu(self.down(features), SLOPE)


class GrowingDiscriminator(GrowingNetwork):
    """Images at the size of the present level -> one logit each: the generator mirrored, with minibatch stddev."""

    def __init__(self, sizes: Sequence[Size], channels: Sequence[int], colours: int):
        super().__init__(sizes, channels, colours)
        self.heads.append(EqualizedConv(colours, channels[0], 1))
        self.stddev = MinibatchStddev()
        self.conv = EqualizedConv(channels[0] + 1, channels[0])
        self.dense = EqualizedLinear(channels[0] * math.prod(sizes[0]), channels[0])
        self.last = EqualizedLinear(channels[0], 1, gain=1)

    def grow(self) -> None:
        """Add a level."""
        out_channels, in_channels = self.channels[self.level : self.level + 2]
        factors = strides(self.sizes[self.level], self.sizes[self.level + 1])
        self.blocks.append(ShrinkingBlock(in_channels, out_channels, factors))
        self.heads.append(EqualizedConv(self.colours, in_channels, 1))

    def features(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b, c, h, w) at the smallest size."""
        features = self._from_image(images, self.level)
        if self.blocks:
            newest = self.blocks[-1]
            features = newest(features)
            if self.fading:
                features = blend(self._from_image(halve(images, newest.factors), self.level - 1), features, self.alpha)
        for level in range(self.level - 2, -1, -1):
            features = self.blocks[level](features)
        return features

    def _from_image(self, images: Tensor, level: int) -> Tensor:
        return F.leaky_relu(self.heads[level](images), SLOPE)

    def logits_from(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b,) logits."""
        features = F.leaky_relu(self.conv(self.stddev(features)), SLOPE)
        return self.last(F.leaky_relu(self.dense(features.flatten(1)), SLOPE))[:, 0]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.logits_from(self.features(images))
