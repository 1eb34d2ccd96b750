"""Residual blocks, and the residual trunk of classifiers (He et al. 2016)."""

import math
from itertools import pairwise

from torch import Tensor, nn

from models.nn.encoders import Rescale, pyramid, stage_widths


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation: the statistics are per image, so that they do not depend on the batch."""
    return nn.GroupNorm(max(1, channels // 16), channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, pre-activation (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(
            norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1),
            nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1),
        )  # fmt: skip

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.branch(maps)


class ResNetTrunk(nn.Module):
    """Images (b, c, h, w) in [0, 1] -> (b, features): a stage per halving, down to about 4x4; not pooled."""

    def __init__(self, shape: tuple[int, int, int], width: int):
        super().__init__()
        sizes = pyramid(*shape[1:])
        widths = [shape[0], *(stage_widths(sizes, width) or [width])]
        strides = [
            tuple(2 if b != s else 1 for b, s in zip(big, small, strict=True)) for big, small in pairwise(sizes)
        ] or [(1, 1)]
        layers: list[nn.Module] = [Rescale()]
        for (before, after), stride in zip(pairwise(widths), strides, strict=True):
            if len(layers) > 1:
                layers += [norm(before), nn.SiLU()]
            layers += [nn.Conv2d(before, after, 3, stride, 1), ResidualBlock(after)]
        self.layers = nn.Sequential(*layers, norm(widths[-1]), nn.SiLU(), nn.Flatten())
        self.features = widths[-1] * math.prod(sizes[-1])

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
