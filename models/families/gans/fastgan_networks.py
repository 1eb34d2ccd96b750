"""Networks for few images, after Liu et al. 2021 (FastGAN): skip-layer excitation in G, an autoencoding D.

D also learns to reconstruct the training images from its features, which delays overfitting.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.families.gans.conv_networks import Shape, widths
from models.families.gans.layers import Downsample, Upsample, halve, strides
from models.families.gans.presets import NetworkConfig
from models.nn.encoders import Size, pyramid
from models.seeds import generator

REACH = 4  # levels between a map and the one whose channels it scales


class Noise(nn.Module):
    """Adds noise times a learned strength, initially 0: fresh in training, one fixed map in eval mode."""

    def __init__(self, size: Size):
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("fixed", torch.randn(1, 1, *size, generator=generator(0, "noise", *size)))

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features + self.strength * self.fixed
        return features + self.strength * torch.randn(len(features), 1, *features.shape[2:], device=features.device)


class GatedUpsample(nn.Module):
    """Upsampling, convolution to twice the channels, noise, norm, then a gated linear unit."""

    def __init__(self, in_channels: int, out_channels: int, size: Size):
        super().__init__()
        self.conv = spectral_norm(Upsample(in_channels, 2 * out_channels, size, bias=False))
        self.noise, self.norm = Noise(size), nn.BatchNorm2d(2 * out_channels)

    def forward(self, features: Tensor) -> Tensor:
        return F.glu(self.norm(self.noise(self.conv(features))), 1)


class Excitation(nn.Module):
    """Gains (b, out_channels, 1, 1) of the channels of a later map, from a coarse map (eq. 1)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            spectral_norm(nn.Conv2d(in_channels, out_channels, 4)),
            nn.SiLU(),
            spectral_norm(nn.Conv2d(out_channels, out_channels, 1)),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class FastGenerator(nn.Module):
    """From the smallest size up; each map also scales the channels of the one `REACH` levels later."""

    def __init__(self, config: NetworkConfig, shape: Shape):
        super().__init__()
        sizes = pyramid(*shape[1:])
        channels = widths(len(sizes), config.width)[::-1]  # coarse to fine
        self.grid = 2 * channels[0], *sizes[-1]
        self.first = nn.Linear(config.latent_dim, math.prod(self.grid), bias=False)
        self.norm = nn.BatchNorm2d(2 * channels[0])
        self.stages, self.excitations = nn.ModuleList(), nn.ModuleDict()
        reach = min(REACH, len(sizes) - 1)
        for level, size in enumerate(sizes[-2::-1], start=1):
            self.stages.append(GatedUpsample(channels[level - 1], channels[level], size))
            if level >= reach:
                self.excitations[str(level)] = Excitation(channels[level - reach], channels[level])
        self.reach = reach
        self.last = spectral_norm(nn.Conv2d(channels[-1], shape[0], 3, padding=1))

    def forward(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        maps = [F.glu(self.norm(self.first(latents).unflatten(1, self.grid)), 1)]
        for level, stage in enumerate(self.stages, start=1):
            features = stage(maps[-1])
            if level >= self.reach:
                features = features * self.excitations[str(level)](maps[level - self.reach])
            maps.append(features)
        return torch.tanh(self.last(maps[-1]))


class ResidualDownsample(nn.Module):
    """The mean of a strided path and an average-pooled one."""

    def __init__(self, in_channels: int, out_channels: int, big: Size, small: Size):
        super().__init__()
        self.factors = strides(small, big)
        self.strided = Downsample(in_channels, out_channels, big, small, "stride", "spectral")
        self.refined = spectral_norm(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.averaged = spectral_norm(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        strided = F.leaky_relu(self.refined(F.leaky_relu(self.strided(features), 0.2)), 0.2)
        return (strided + F.leaky_relu(self.averaged(halve(features, self.factors)), 0.2)) / 2


class FastDiscriminator(nn.Module):
    """Residual downsampling with spectral norm, and a small decoder back to half the image's size."""

    def __init__(self, config: NetworkConfig, shape: Shape):
        super().__init__()
        sizes = pyramid(*shape[1:])
        channels = [config.width, *widths(len(sizes) - 1, config.width)]
        self.first = spectral_norm(nn.Conv2d(shape[0], config.width, 3, padding=1))
        self.stages = nn.ModuleList(
            ResidualDownsample(*channels[level : level + 2], *sizes[level : level + 2])
            for level in range(len(sizes) - 1)
        )
        self.last = spectral_norm(nn.Linear(channels[-1] * math.prod(sizes[-1]), 1))
        self.halving = strides(sizes[1], sizes[0])
        targets = sizes[-2:0:-1]  # up to half the image
        self.drawing = nn.Sequential(
            *(GatedUpsample(channels[-1 - i], channels[-2 - i], size) for i, size in enumerate(targets)),
            nn.Conv2d(channels[-1 - len(targets)], shape[0], 3, padding=1),
            nn.Tanh(),
        )

    def features(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b, f, h', w') at the smallest size."""
        features = F.leaky_relu(self.first(images), 0.2)
        for stage in self.stages:
            features = stage(features)
        return features

    def logits_from(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b,) logits."""
        return self.last(features.flatten(1))[:, 0]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.logits_from(self.features(images))

    def reconstruction_error(self, features: Tensor, images: Tensor) -> Tensor:
        """L1 distance of the reconstruction from the images at half size, plus the L1 distance of their gradients."""
        error = self.drawing(features) - halve(images, self.halving)
        return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
