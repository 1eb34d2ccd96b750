"""Convolutional generator and discriminator for images of any size: the stable preset and DCGAN.

Generators map latents (b, d) and perhaps a condition (b, k) to images (b, c, h, w) in [-1, 1]; discriminators map
images to features and features to one logit per image.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.families.gans.layers import ChannelDropout, Downsample, MinibatchStddev, Transposed, Upsample, norm_layer
from models.families.gans.presets import BodyConfig
from models.nn.encoders import pyramid

Shape = tuple[int, int, int]


def widths(levels: int, width: int) -> list[int]:
    """Channels from the finest grid to the coarsest: doubled each time, up to 8 times the first."""
    return [width * min(8, 2**level) for level in range(levels)]


def planes(condition: Tensor, images: Tensor) -> Tensor:
    """A condition (b, k) as constant maps (b, k, h, w)."""
    return condition[:, :, None, None].expand(-1, -1, *images.shape[2:])


def gaussian_start(network: nn.Module) -> None:
    """N(0, 0.02) for weights, N(1, 0.02) for the gains of norms (Radford et al. 2016, section 4)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight, 1.0, 0.02)


class Stage(nn.Module):
    """One stage of a generator: `layer` to the next grid, norm, ReLU, dropout."""

    def __init__(self, layer: nn.Module, channels: int, config: BodyConfig, condition_dim: int):
        super().__init__()
        self.layer = layer
        self.norm = norm_layer(config.generator_norm, channels, condition_dim)
        self.dropout = ChannelDropout(channels, config.generator_dropout, config.dropout_when_sampling)

    def forward(self, features: Tensor, latents: Tensor, condition: Tensor | None) -> Tensor:
        return self.dropout(F.relu(self.norm(self.layer(features), condition)), latents)


class ConvGenerator(nn.Module):
    """A linear layer to the smallest grid, then one stage per doubling.

    `stable` repeats pixels and convolves, at the end once more at full size; `dcgan` uses transposed convolutions,
    the last of which makes the image. A condition joins the latents (`joined` of them) or decides gain and shift of
    the norms (`condition_dim`).
    """

    def __init__(self, config: BodyConfig, shape: Shape, joined: int = 0, condition_dim: int = 0):
        super().__init__()
        self.joined = joined
        sizes, dcgan = pyramid(*shape[1:]), config.body == "dcgan"
        channels = [shape[0], *widths(len(sizes) - 1, config.width)] if dcgan else widths(len(sizes), config.width)
        bias = config.generator_norm != "batch"  # batch norm has a shift of its own
        spread = nn.Sequential(
            nn.Linear(config.latent_dim + joined, channels[-1] * math.prod(sizes[-1]), bias=bias),
            nn.Unflatten(1, (channels[-1], *sizes[-1])),
        )
        self.stages = nn.ModuleList([Stage(spread, channels[-1], config, condition_dim)])
        for level in range(len(sizes) - 1, int(dcgan), -1):
            ends = channels[level], channels[level - 1]
            grids = sizes[level], sizes[level - 1]
            up = Transposed(*ends, *grids, bias) if dcgan else Upsample(*ends, grids[1], bias)
            self.stages.append(Stage(up, channels[level - 1], config, condition_dim))
        if dcgan:
            self.last = Transposed(channels[1], shape[0], sizes[1], sizes[0])
            gaussian_start(self)
        else:
            self.last = nn.Conv2d(channels[0], shape[0], 3, padding=1)

    def forward(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        features = torch.cat([latents, condition], 1) if self.joined else latents
        for stage in self.stages:
            features = stage(features, latents, condition)
        return torch.tanh(self.last(features))


class ConvDiscriminator(nn.Module):
    """Halving convolutions to the smallest grid, the spread of the batch as one more map, one linear layer.

    A condition joins the image as planes (`joined` of them), or is projected (`condition_dim`):
    logit = w.h + e(y).sum(h) (Miyato & Koyama 2018).
    """

    def __init__(self, config: BodyConfig, shape: Shape, joined: int = 0, condition_dim: int = 0):
        super().__init__()
        self.joined = joined
        sizes, kind = pyramid(*shape[1:]), config.discriminator_norm
        channels = [shape[0] + joined, *widths(len(sizes) - 1, config.width)]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for level in range(len(sizes) - 1):
            normed = "none" if kind == "batch" and level == 0 else kind  # the first layer stays free (DCGAN)
            ends, grids = channels[level : level + 2], sizes[level : level + 2]
            self.convs.append(Downsample(*ends, *grids, config.downsampling, normed, bias=normed != "batch"))
            self.norms.append(norm_layer(normed, ends[1]))
        self.slope = 0.2 if config.activation == "leaky_relu" else 0.0
        self.stddev = MinibatchStddev() if config.minibatch_stddev else nn.Identity()
        last = nn.Linear((channels[-1] + config.minibatch_stddev) * math.prod(sizes[-1]), 1)
        self.last = spectral_norm(last) if kind == "spectral" else last
        self.projection = nn.Linear(condition_dim, channels[-1], bias=False) if condition_dim else None
        if config.body == "dcgan":
            gaussian_start(self)

    def features(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b, f, h', w') at the smallest grid."""
        features = torch.cat([images, planes(condition, images)], 1) if self.joined else images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            features = F.leaky_relu(norm(conv(features)), self.slope)
        return features

    def judge(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b,) logits."""
        logits = self.last(self.stddev(features).flatten(1))[:, 0]
        if self.projection is None:
            return logits
        return logits + (self.projection(condition) * features.sum((2, 3))).sum(1)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.judge(self.features(images, condition), condition)
