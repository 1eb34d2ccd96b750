"""The players of StyleGAN2 in plain operations (Karras et al. 2020): a mapping to styles, and convolutions that obey.

A style (b, w) may differ by layer: (b, layers, w). Every layer adds noise, fresh in training and one fixed map when
serving.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.gans.equalized_lr import EqualisedConv, EqualisedDownsample, EqualisedLinear
from models.families.gans.layers import MinibatchStddev, PixelNorm, doubling_conv, halve, strides
from models.nn.encoders import Size
from models.seeds import generator

SLOPE, ROOT = 0.2, math.sqrt(2)


class Mapping(nn.Sequential):
    """Noise (b, d) -> styles (b, d): fully connected layers that learn a hundred times slower."""

    def __init__(self, width: int, layers: int):
        stack: list[nn.Module] = [PixelNorm()]
        for _ in range(layers):
            stack += [EqualisedLinear(width, width, pace=0.01), nn.LeakyReLU(SLOPE)]
        super().__init__(*stack)


class ModulatedConv(nn.Module):
    """A convolution whose input channels the style scales, and whose output keeps unit scale (eq. 1 and 3).

    Scaling the features before and after equals scaling the kernel for each row, and needs no grouped convolution.
    """

    def __init__(self, before: int, after: int, style_dim: int, size: Size, width: int = 3, demodulate: bool = True):
        super().__init__()
        self.style = EqualisedLinear(style_dim, before, gain=1, start=1.0)
        self.conv = EqualisedConv(before, after, width, gain=1)
        self.size, self.demodulate = size, demodulate

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        gains, kernel = self.style(style), self.conv.scaled()  # (b, i), (o, i, k, k)
        features = features * gains[:, :, None, None]
        out = F.conv2d(features, kernel) if kernel.shape[2] == 1 else doubling_conv(features, kernel, self.size)
        if self.demodulate:
            power = gains.square() @ kernel.square().sum((2, 3)).T  # (b, o)
            out = out * torch.rsqrt(power + 1e-8)[:, :, None, None]
        return out + self.conv.bias[:, None, None]


class StyledLayer(nn.Module):
    """Modulated convolution, noise at a learned strength, leaky ReLU."""

    def __init__(self, before: int, after: int, style_dim: int, size: Size, noise: bool):
        super().__init__()
        self.conv = ModulatedConv(before, after, style_dim, size)
        self.strength = nn.Parameter(torch.zeros(())) if noise else None
        self.register_buffer("noise", torch.randn(1, 1, *size, generator=generator(0, "style noise", after, *size)))

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        features = self.conv(features, style)
        if self.strength is not None:
            noise = self.noise
            if self.training:
                noise = torch.randn(features.shape[0], *noise.shape[1:], device=features.device)
            features = features + self.strength * noise
        return F.leaky_relu(features, SLOPE) * ROOT


def enlarge(image: Tensor, size: Size) -> Tensor:
    """Onto the next grid, bilinearly where the side doubles; an odd side loses its last row."""
    factors = strides(image.shape[2:], size)
    grid = tuple(side * factor for side, factor in zip(image.shape[2:], factors, strict=True))
    return F.interpolate(image, grid, mode="bilinear", align_corners=False)[:, :, : size[0], : size[1]]


class StyleGenerator(nn.Module):
    """Styles -> images (b, c, h, w) in [-1, 1]: a learned constant, then two layers a level; pictures add up.

    The sum is squashed, unlike the paper's: drawings and digits are exactly black or white over most of their area,
    a linear sum never is, and that alone tells the discriminator all it needs.
    """

    def __init__(
        self,
        style_dim: int,
        sizes: Sequence[Size],
        channels: Sequence[int],
        colours: int,
        mapping_layers: int,
        noise: bool,
    ):
        super().__init__()
        self.sizes = list(sizes)
        self.mapping = Mapping(style_dim, mapping_layers)
        self.register_buffer("centre", torch.zeros(style_dim))  # the mean style
        self.start = nn.Parameter(torch.randn(1, channels[0], *sizes[0]))
        self.layers, self.heads = nn.ModuleList(), nn.ModuleList()
        before = channels[0]
        for level, (size, after) in enumerate(zip(sizes, channels, strict=True)):
            if level:
                self.layers.append(StyledLayer(before, after, style_dim, size, noise))
            self.layers.append(StyledLayer(after, after, style_dim, size, noise))
            self.heads.append(ModulatedConv(after, colours, style_dim, size, width=1, demodulate=False))
            before = after

    @property
    def depth(self) -> int:
        """Layers that take a style."""
        return len(self.layers)

    def forward(self, styles: Tensor) -> Tensor:
        styles = styles[:, None].expand(-1, self.depth, -1) if styles.ndim == 2 else styles
        features, image = self.start.expand(styles.shape[0], -1, -1, -1), None
        index = 0
        for level, size in enumerate(self.sizes):
            for _ in range(2 if level else 1):
                features = self.layers[index](features, styles[:, index])
                index += 1
            added = self.heads[level](features, styles[:, index - 1])
            image = added if image is None else enlarge(image, size) + added
        return torch.tanh(image)

    def mixed(self, coarse: Tensor, fine: Tensor, start: Tensor) -> Tensor:
        """(b, layers, w): `coarse` (b, w) up to layer `start` (b,) and `fine` from there on."""
        layers = torch.arange(self.depth, device=start.device)
        return torch.where((layers < start[:, None])[:, :, None], coarse[:, None], fine[:, None])

    @torch.no_grad()
    def follow(self, styles: Tensor, share: float = 0.005) -> None:
        """Move the mean style towards that of a batch."""
        self.centre.lerp_(styles.detach().mean(0).to(self.centre), share)


class ResidualBlock(nn.Module):
    """Two convolutions and a halving, beside a plain way around; scaled so that the sum keeps its size."""

    def __init__(self, before: int, after: int, factors: Size):
        super().__init__()
        self.conv, self.down = EqualisedConv(before, before), EqualisedDownsample(before, after, factors)
        self.around, self.factors = EqualisedConv(before, after, 1, gain=1), factors

    def forward(self, features: Tensor) -> Tensor:
        inside = F.leaky_relu(self.down(F.leaky_relu(self.conv(features), SLOPE)), SLOPE)
        return (inside + self.around(halve(features, self.factors))) / ROOT


class StyleDiscriminator(nn.Module):
    """Images -> one logit each, through residual halvings and the spread of the batch."""

    def __init__(self, sizes: Sequence[Size], channels: Sequence[int], colours: int):
        super().__init__()
        self.first = EqualisedConv(colours, channels[-1], 1)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels[level], channels[level - 1], strides(sizes[level - 1], sizes[level]))
            for level in range(len(sizes) - 1, 0, -1)
        )
        self.stddev = MinibatchStddev()
        self.conv = EqualisedConv(channels[0] + 1, channels[0])
        self.dense = EqualisedLinear(channels[0] * math.prod(sizes[0]), channels[0])
        self.last = EqualisedLinear(channels[0], 1, gain=1)

    def features(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b, c, h, w) at the smallest grid."""
        features = F.leaky_relu(self.first(images), SLOPE)
        for block in self.blocks:
            features = block(features)
        return features

    def judge(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b,) logits."""
        features = F.leaky_relu(self.conv(self.stddev(features)), SLOPE)
        return self.last(F.leaky_relu(self.dense(features.flatten(1)), SLOPE))[:, 0]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.judge(self.features(images))
