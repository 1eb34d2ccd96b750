"""Convolutional generator and discriminator for images of any size: the stable preset and DCGAN.

Generators map latents (b, d) and an optional condition (b, k) to images (b, c, h, w) in [-1, 1]; discriminators map
images to features, and features to one logit per image.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.families.gans.layers import ChannelDropout, Downsample, MinibatchStddev, Transposed, Upsample, norm_layer
from models.families.gans.presets import NetworkConfig
from models.nn.encoders import pyramid

Shape = tuple[int, int, int]


def widths(levels: int, width: int) -> list[int]:
    """Channels from the finest level to the coarsest: doubled at each, up to 8 times `width`."""
    return [width * min(8, 2**level) for level in range(levels)]


def as_maps(condition: Tensor, images: Tensor) -> Tensor:
    """A condition (b, k) as constant maps (b, k, h, w)."""
    return condition[:, :, None, None].expand(-1, -1, *images.shape[2:])


def init_dcgan(network: nn.Module) -> None:
    """N(0, 0.02) for weights, N(1, 0.02) for the gains of norms (Radford et al. 2016, section 4)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight, 1.0, 0.02)


class Stage(nn.Module):
    """One stage of a generator: `layer` to the next size, norm, ReLU, dropout."""

    def __init__(self, layer: nn.Module, channels: int, config: NetworkConfig, condition_dim: int):
        super().__init__()
        self.layer = layer
        self.norm = norm_layer(config.generator_norm, channels, condition_dim)
        self.dropout = ChannelDropout(channels, config.generator_dropout, config.dropout_when_sampling)

    def forward(self, features: Tensor, latents: Tensor, condition: Tensor | None) -> Tensor:
        return self.dropout(F.relu(self.norm(self.layer(features), condition)), latents)


class ConvGenerator(nn.Module):
    """A linear layer to the smallest size, then one stage per doubling.

    `stable` upsamples and convolves, with one more convolution at full size; `dcgan` uses transposed convolutions, the
    last of which outputs the image. A condition is appended to the latents (`concat_dim` numbers) or sets gain and
    shift of the norms (`condition_dim` numbers).
    """

    def __init__(self, config: NetworkConfig, shape: Shape, concat_dim: int = 0, condition_dim: int = 0):
        super().__init__()
        self.concat_dim = concat_dim
        sizes, dcgan = pyramid(*shape[1:]), config.body == "dcgan"
        channels = [shape[0], *widths(len(sizes) - 1, config.width)] if dcgan else widths(len(sizes), config.width)
        bias = config.generator_norm != "batch"  # batch norm has its own shift
        to_smallest = nn.Sequential(
            nn.Linear(config.latent_dim + concat_dim, channels[-1] * math.prod(sizes[-1]), bias=bias),
            nn.Unflatten(1, (channels[-1], *sizes[-1])),
        )
        self.stages = nn.ModuleList([Stage(to_smallest, channels[-1], config, condition_dim)])
        for level in range(len(sizes) - 1, int(dcgan), -1):
            ends = channels[level], channels[level - 1]
            grids = sizes[level], sizes[level - 1]
            up = Transposed(*ends, *grids, bias) if dcgan else Upsample(*ends, grids[1], bias)
            self.stages.append(Stage(up, channels[level - 1], config, condition_dim))
        if dcgan:
            self.last = Transposed(channels[1], shape[0], sizes[1], sizes[0])
            init_dcgan(self)
        else:
            self.last = nn.Conv2d(channels[0], shape[0], 3, padding=1)

    def forward(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        features = torch.cat([latents, condition], 1) if self.concat_dim else latents
        for stage in self.stages:
            features = stage(features, latents, condition)
        return torch.tanh(self.last(features))


class ConvDiscriminator(nn.Module):
    """Halving convolutions to the smallest size, minibatch stddev as one more map, one linear layer.

    A condition is appended to the image as constant maps (`concat_dim` of them), or projected (`condition_dim`):
    logit = w^T h + e(y)^T sum_pixels h (Miyato & Koyama 2018).
    """

    def __init__(self, config: NetworkConfig, shape: Shape, concat_dim: int = 0, condition_dim: int = 0):
        super().__init__()
        self.concat_dim = concat_dim
        sizes, kind = pyramid(*shape[1:]), config.discriminator_norm
        channels = [shape[0] + concat_dim, *widths(len(sizes) - 1, config.width)]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for level in range(len(sizes) - 1):
            normed = "none" if kind == "batch" and level == 0 else kind  # no norm on the first layer (DCGAN)
            ends, grids = channels[level : level + 2], sizes[level : level + 2]
            self.convs.append(Downsample(*ends, *grids, config.downsampling, normed, bias=normed != "batch"))
            self.norms.append(norm_layer(normed, ends[1]))
        self.slope = 0.2 if config.activation == "leaky_relu" else 0.0
        self.stddev = MinibatchStddev() if config.minibatch_stddev else nn.Identity()
        last = nn.Linear((channels[-1] + config.minibatch_stddev) * math.prod(sizes[-1]), 1)
        self.last = spectral_norm(last) if kind == "spectral" else last
        self.projection = nn.Linear(condition_dim, channels[-1], bias=False) if condition_dim else None
        if config.body == "dcgan":
            init_dcgan(self)

    def features(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b, f, h', w') at the smallest size."""
        features = torch.cat([images, as_maps(condition, images)], 1) if self.concat_dim else images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            features = F.leaky_relu(norm(conv(features)), self.slope)
        return features

    def logits_from(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b,) logits."""
        logits = self.last(self.stddev(features).flatten(1))[:, 0]
        if self.projection is None:
            return logits
        return logits + (self.projection(condition) * features.sum((2, 3))).sum(1)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.logits_from(self.features(images, condition), condition)


def plain_discriminator(width: int, shape: Shape) -> ConvDiscriminator:
    """That of `gan` with body=stable: no norm, minibatch stddev."""
    return ConvDiscriminator(
        NetworkConfig(
            body="stable",
            width=width,
            discriminator_norm="none",
            downsampling="stride",
            activation="leaky_relu",
            minibatch_stddev=True,
        ),
        shape,
    )
