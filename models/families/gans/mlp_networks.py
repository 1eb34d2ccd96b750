"""Fully connected generator (ReLU) and discriminator (maxout with dropout) (Goodfellow et al. 2014)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.families.gans.conv_networks import Shape
from models.families.gans.layers import ChannelDropout, Maxout
from models.families.gans.presets import NetworkConfig


class MLPGenerator(nn.Module):
    """Two hidden layers of `width` ReLU units; a condition is appended to the latents (Mirza & Osindero 2014)."""

    def __init__(self, config: NetworkConfig, shape: Shape, concat_dim: int = 0):
        super().__init__()
        self.shape = shape
        inputs = config.latent_dim + concat_dim
        self.hidden = nn.ModuleList([nn.Linear(inputs, config.width), nn.Linear(config.width, config.width)])
        self.dropouts = nn.ModuleList(
            ChannelDropout(config.width, config.generator_dropout, config.dropout_when_sampling) for _ in self.hidden
        )
        self.last = nn.Linear(config.width, math.prod(shape))

    def forward(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        features = latents if condition is None else torch.cat([latents, condition], 1)
        for layer, dropout in zip(self.hidden, self.dropouts, strict=True):
            features = dropout(F.relu(layer(features)), latents)
        return torch.tanh(self.last(features)).unflatten(1, self.shape)


class MLPDiscriminator(nn.Module):
    """Two hidden layers, by default maxout of five pieces, each after dropout; a condition is appended to the image."""

    def __init__(self, config: NetworkConfig, shape: Shape, concat_dim: int = 0):
        super().__init__()
        self.concat_dim = concat_dim
        spectral = spectral_norm if config.discriminator_norm == "spectral" else lambda layer: layer
        units = max(config.width // 5, 4) if config.activation == "maxout" else config.width
        layers: list[nn.Module] = [nn.Flatten()]
        before, rate = math.prod(shape) + concat_dim, 0.2
        for _ in range(2):
            layers += [nn.Dropout(rate), *self._hidden(before, units, config.activation, spectral)]
            before, rate = units, 0.5
        self.hidden = nn.Sequential(*layers)
        self.last = spectral(nn.Linear(units, 1))

    def features(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b, units)."""
        flat = images.flatten(1)
        return self.hidden(flat if condition is None else torch.cat([flat, condition], 1))

    def logits_from(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b,) logits."""
        return self.last(features)[:, 0]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.logits_from(self.features(images, condition), condition)

    def _hidden(self, before: int, after: int, activation: str, spectral) -> list[nn.Module]:
        if activation == "maxout":
            maxout = Maxout(before, after)
            maxout.linear = spectral(maxout.linear)
            return [maxout]
        slope = 0.2 if activation == "leaky_relu" else 0.0
        return [spectral(nn.Linear(before, after)), nn.LeakyReLU(slope)]
