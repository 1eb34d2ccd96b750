"""Residual blocks; the residual trunk of classifiers (He et al. 2016), and residual encoders and decoders."""

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn

from models.nn.encoders import Rescale, Stage, Upsample, pyramid, stage_widths


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


class ResNetEncoder(nn.Module):
    """A ResNetTrunk, then one linear layer to the code: (b, c, h, w) -> (b, out)."""

    def __init__(self, shape: tuple[int, int, int], out: int, width: int):
        super().__init__()
        self.trunk = ResNetTrunk(shape, width)
        self.last = nn.Linear(self.trunk.features, out)

    def features(self, images: Tensor) -> Tensor:
        """(b, f): the input of the last layer."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.features(images))


class ResNetDecoder(nn.Module):
    """The mirror of ResNetEncoder: a linear layer to the smallest grid, then a block and an Upsample per stage."""

    def __init__(self, latent_dim: int, shape: tuple[int, int, int], width: int):
        super().__init__()
        sizes = pyramid(*shape[1:])
        widths = [shape[0], *stage_widths(sizes, width)]
        self.grid = widths[-1], *sizes[-1]
        self.spread = nn.Linear(latent_dim, math.prod(self.grid))
        self.layers = nn.Sequential(*(
            nn.Sequential(
                ResidualBlock(widths[index]), norm(widths[index]), nn.SiLU(),
                Upsample(widths[index], widths[index - 1], sizes[index], sizes[index - 1]),
            )
            for index in range(len(sizes) - 1, 0, -1)
        ))  # fmt: skip

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(self.spread(latents).unflatten(1, self.grid))

    def stages(self) -> Iterator[Stage]:
        """The layers, so that a caller can modulate their outputs (FiLM)."""
        yield Stage(lambda latents: self.spread(latents).unflatten(1, self.grid), self.grid[0])
        yield from (Stage(layer, layer[-1].after) for layer in self.layers)
