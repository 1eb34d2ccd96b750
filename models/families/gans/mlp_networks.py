"""The fully connected players of the 2014 paper: rectifiers against maxout with dropout."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.families.gans.conv_networks import Shape
from models.families.gans.layers import ChannelDropout, Maxout
from models.families.gans.presets import BodyConfig


class FlatGenerator(nn.Module):
    """Two hidden layers of `width` rectifiers; a condition joins the latents (Mirza & Osindero 2014)."""

    def __init__(self, config: BodyConfig, shape: Shape, joined: int = 0):
        super().__init__()
        self.shape = shape
        inputs = config.latent_dim + joined
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


class FlatDiscriminator(nn.Module):
    """Two hidden layers, maxout of five pieces by default, with dropout before each; a condition joins the image."""

    def __init__(self, config: BodyConfig, shape: Shape, joined: int = 0):
        super().__init__()
        self.joined = joined
        spectral = spectral_norm if config.discriminator_norm == "spectral" else lambda layer: layer
        units = max(config.width // 5, 4) if config.activation == "maxout" else config.width
        layers: list[nn.Module] = [nn.Flatten()]
        before, rate = math.prod(shape) + joined, 0.2
        for _ in range(2):
            layers += [nn.Dropout(rate), *self._hidden(before, units, config.activation, spectral)]
            before, rate = units, 0.5
        self.hidden = nn.Sequential(*layers)
        self.last = spectral(nn.Linear(units, 1))

    def features(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b, units)."""
        flat = images.flatten(1)
        return self.hidden(flat if condition is None else torch.cat([flat, condition], 1))

    def judge(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b,) logits."""
        return self.last(features)[:, 0]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.judge(self.features(images, condition), condition)

    def _hidden(self, before: int, after: int, activation: str, spectral) -> list[nn.Module]:
        if activation == "maxout":
            maxout = Maxout(before, after)
            maxout.linear = spectral(maxout.linear)
            return [maxout]
        slope = 0.2 if activation == "leaky_relu" else 0.0
        return [spectral(nn.Linear(before, after)), nn.LeakyReLU(slope)]
