"""The networks of StyleGAN2 without custom kernels (Karras et al. 2020): mapping, modulated convolutions, D.

Styles are (b, w), or (b, layers, w) where they differ by layer. Every layer adds noise: fresh in training, one fixed
map in eval mode.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.gans.equalized_lr import EqualizedConv, EqualizedDownsample, EqualizedLinear
from models.families.gans.layers import MinibatchStddev, PixelNorm, doubling_conv, halve, strides
from models.nn.encoders import Size
from models.seeds import generator

SLOPE, ROOT = 0.2, math.sqrt(2)  # of leaky ReLU; gain that keeps its output at unit variance


class Mapping(nn.Sequential):
    """Noise (b, d) -> styles (b, d): pixel norm, then linear layers with a learning rate multiplier of 0.01."""

    def __init__(self, width: int, layers: int):
        stack: list[nn.Module] = [PixelNorm()]
        for _ in range(layers):
            stack += [EqualizedLinear(width, width, lr_multiplier=0.01), nn.LeakyReLU(SLOPE)]
        super().__init__(*stack)


class ModulatedConv(nn.Module):
    """Modulated convolution: w'_ijk = s_i w_ijk (eq. 1), demodulated: w''_ijk = w'_ijk / sqrt(sum_ik w'_ijk^2) (eq. 3).

    i is an input channel, j an output channel, k a tap. Scaling the features before and after the convolution equals
    scaling the kernel of each row, and needs no grouped convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_dim: int,
        size: Size,
        width: int = 3,
        demodulate: bool = True,
        low_pass: bool = False,
    ):
        super().__init__()
        self.style = EqualizedLinear(style_dim, in_channels, gain=1, bias=1.0)
        self.conv = EqualizedConv(in_channels, out_channels, width, gain=1)
        self.size, self.demodulate, self.low_pass = size, demodulate, low_pass

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        gains, kernel = self.style(style), self.conv.scaled()  # (b, i), (o, i, k, k)
        features = features * gains[:, :, None, None]
        if kernel.shape[2] == 1:
            out = F.conv2d(features, kernel)
        else:
            out = doubling_conv(features, kernel, self.size, low_pass=self.low_pass)
        if self.demodulate:
            power = gains.square() @ kernel.square().sum((2, 3)).T  # (b, o)
            out = out * torch.rsqrt(power + 1e-8)[:, :, None, None]
        return out + self.conv.bias[:, None, None]


class StyledLayer(nn.Module):
    """Modulated convolution, noise at a learned strength, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, size: Size, noise: bool, low_pass: bool):
        super().__init__()
        self.conv = ModulatedConv(in_channels, out_channels, style_dim, size, low_pass=low_pass)
        self.strength = nn.Parameter(torch.zeros(())) if noise else None
        self.register_buffer(
            "noise", torch.randn(1, 1, *size, generator=generator(0, "style noise", out_channels, *size))
        )

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        features = self.conv(features, style)
        if self.strength is not None:
            noise = self.noise
            if self.training:
                noise = torch.randn(features.shape[0], *noise.shape[1:], device=features.device)
            features = features + self.strength * noise
        return F.leaky_relu(features, SLOPE) * ROOT


def enlarge(image: Tensor, size: Size) -> Tensor:
    """Bilinear upsampling to the next size; an odd side is cropped by one row or column."""
    factors = strides(image.shape[2:], size)
    grid = tuple(side * factor for side, factor in zip(image.shape[2:], factors, strict=True))
    return F.interpolate(image, grid, mode="bilinear", align_corners=False)[:, :, : size[0], : size[1]]


class StyleGenerator(nn.Module):
    """Styles -> images (b, c, h, w) in [-1, 1]: a learned constant, two layers per level, images of all levels added.

    The sum passes a tanh, unlike the paper's: drawings and digits are exactly black or white over most of their area,
    a linear sum never is, and the discriminator would need nothing else to tell them apart.
    """

    def __init__(
        self,
        style_dim: int,
        sizes: Sequence[Size],
        channels: Sequence[int],
        colours: int,
        mapping_layers: int,
        noise: bool,
        low_pass: bool = True,
    ):
        super().__init__()
        self.sizes = list(sizes)
        self.mapping = Mapping(style_dim, mapping_layers)
        self.register_buffer("centre", torch.zeros(style_dim))  # mean style
        self.start = nn.Parameter(torch.randn(1, channels[0], *sizes[0]))
        self.layers, self.heads = nn.ModuleList(), nn.ModuleList()
        in_channels = channels[0]
        for level, (size, out_channels) in enumerate(zip(sizes, channels, strict=True)):
            if level:
                self.layers.append(StyledLayer(in_channels, out_channels, style_dim, size, noise, low_pass))
            self.layers.append(StyledLayer(out_channels, out_channels, style_dim, size, noise, low_pass))
            self.heads.append(ModulatedConv(out_channels, colours, style_dim, size, width=1, demodulate=False))
            in_channels = out_channels

    @property
    def depth(self) -> int:
        """Number of layers that take a style."""
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
        """(b, layers, w): the style `coarse` (b, w) in layers below `start` (b,), `fine` in the others."""
        layers = torch.arange(self.depth, device=start.device)
        return torch.where((layers < start[:, None])[:, :, None], coarse[:, None], fine[:, None])

    @torch.no_grad()
    def update_centre(self, styles: Tensor, weight: float = 0.005) -> None:
        """Move the mean style by `weight` of the way towards the mean of a batch (b, w)."""
        self.centre.lerp_(styles.detach().mean(0).to(self.centre), weight)


class ResidualDownBlock(nn.Module):
    """Two convolutions and downsampling, plus a skip connection; divided by sqrt(2), which keeps the variance."""

    def __init__(self, in_channels: int, out_channels: int, factors: Size):
        super().__init__()
        self.conv, self.down = (
            EqualizedConv(in_channels, in_channels),
            EqualizedDownsample(in_channels, out_channels, factors),
        )
        self.around, self.factors = EqualizedConv(in_channels, out_channels, 1, gain=1), factors

    def forward(self, features: Tensor) -> Tensor:
        inside = F.leaky_relu(self.down(F.leaky_relu(self.conv(features), SLOPE)), SLOPE)
        return (inside + self.around(halve(features, self.factors))) / ROOT


class StyleDiscriminator(nn.Module):
    """Images -> one logit each: residual downsampling, minibatch stddev, linear layers."""

    def __init__(self, sizes: Sequence[Size], channels: Sequence[int], colours: int):
        super().__init__()
        self.first = EqualizedConv(colours, channels[-1], 1)
        self.blocks = nn.ModuleList(
            ResidualDownBlock(channels[level], channels[level - 1], strides(sizes[level - 1], sizes[level]))
            for level in range(len(sizes) - 1, 0, -1)
        )
        self.stddev = MinibatchStddev()
        self.conv = EqualizedConv(channels[0] + 1, channels[0])
        self.dense = EqualizedLinear(channels[0] * math.prod(sizes[0]), channels[0])
        self.last = EqualizedLinear(channels[0], 1, gain=1)

    def features(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b, c, h, w) at the smallest size."""
        features = F.leaky_relu(self.first(images), SLOPE)
        for block in self.blocks:
            features = block(features)
        return features

    def logits_from(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b,) logits."""
        features = F.leaky_relu(self.conv(self.stddev(features)), SLOPE)
        return self.last(F.leaky_relu(self.dense(features.flatten(1)), SLOPE))[:, 0]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.logits_from(self.features(images))
