"""Instance norm that can take its statistics from elsewhere: tiles of one image are to be normalised alike."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class InstanceNorm(nn.InstanceNorm2d):
    """Each channel of each image less its mean, over its deviation; without weights (Ulyanov et al. 2016)."""

    given: Tensor | None = None
    """(b, 2, c): mean and variance to use instead of the features' own."""
    seen: list[Tensor] | None = None
    """Where what it met is put down, when somebody asks: (b, 2, c) of the features' own mean and variance."""

    def forward(self, features: Tensor) -> Tensor:
        if self.seen is not None:
            over = (2, 3)
            self.seen.append(torch.stack([features.mean(over), features.var(over, unbiased=False)], 1))
        if self.given is None:
            return super().forward(features)
        mean, variance = self.given[..., None, None].unbind(1)
        return (features - mean) * (variance + self.eps).rsqrt()


def norms(network: nn.Module) -> list[InstanceNorm]:
    return [module for module in network.modules() if isinstance(module, InstanceNorm)]


@contextmanager
def normalised(network: nn.Module, statistics: Tensor | None) -> Iterator[None]:
    """Inside, every norm of `network` uses its part of `statistics` (b, s), a row per image; None: the image's own."""
    layers = norms(network)
    parts = statistics.split([2 * layer.num_features for layer in layers], 1) if statistics is not None else ()
    for layer, part in zip(layers, parts, strict=False):
        layer.given = part.unflatten(1, (2, layer.num_features))
    try:
        yield
    finally:
        for layer in layers:
            layer.given = None


@torch.no_grad()
def measured(network: nn.Module, images: Tensor, statistics: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `network` makes of images, normalised by `statistics`, and what its norms meet there: (b, s).

    s is twice the channels of all norms in the order of `modules()`, which is the order in which they were built.
    """
    layers = norms(network)
    for layer in layers:
        layer.seen = []
    try:
        with normalised(network, statistics):
            made = network(images)
        return made, torch.cat([layer.seen[-1].flatten(1) for layer in layers], 1)
    finally:
        for layer in layers:
            layer.seen = None


def pooled(statistics: Tensor, sizes: list[int]) -> Tensor:
    """Statistics (t, s) of parts of one image, of equal size -> (s,) of all parts together.

    `sizes` are the channels of each norm: the variance of the whole is that inside the parts and that between them.
    """
    found = []
    for part, size in zip(statistics.split([2 * size for size in sizes], 1), sizes, strict=True):
        means, variances = part.unflatten(1, (2, size)).unbind(1)
        found += [means.mean(0), variances.mean(0) + means.var(0, unbiased=False)]
    return torch.cat(found)
