"""Instance norm that can take its statistics from elsewhere: tiles of one image are to be normalised alike."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class InstanceNorm(nn.InstanceNorm2d):
    """Each channel of each image less its mean, over its deviation; without weights (Ulyanov et al. 2016)."""

    given: Tensor | None = None
    """(b, 2, c): mean and variance to use instead of the features' own."""
    pooled: Tensor | None = None
    """(1, 2, c): what the last batch had together, while `pooling`."""
    pooling: bool = False
    """All images of a batch are parts of one and share their statistics."""

    def forward(self, features: Tensor) -> Tensor:
        if self.pooling:
            over = (0, 2, 3)
            self.pooled = torch.stack([features.mean(over), features.var(over, unbiased=False)])[None]
        statistics = self.pooled if self.pooling else self.given
        if statistics is None:
            return super().forward(features)
        mean, variance = statistics[..., None, None].unbind(1)
        return (features - mean) * (variance + self.eps).rsqrt()


def norms(network: nn.Module) -> list[InstanceNorm]:
    return [module for module in network.modules() if isinstance(module, InstanceNorm)]


@contextmanager
def normalised(network: nn.Module, statistics: Tensor) -> Iterator[None]:
    """Inside, every norm of `network` uses its part of `statistics` (b, s), a row per image."""
    layers = norms(network)
    parts = statistics.split([2 * layer.num_features for layer in layers], 1)
    for layer, part in zip(layers, parts, strict=True):
        layer.given = part.unflatten(1, (2, layer.num_features))
    try:
        yield
    finally:
        for layer in layers:
            layer.given = None


@torch.no_grad()
def measured(network: nn.Module, parts: Tensor) -> tuple[Tensor, Tensor]:
    """What `network` makes of parts (b, c, h, w) of one image that are normalised together, and with what: (s,).

    s is twice the channels of all norms, in the order in which they were built.
    """
    layers = norms(network)
    for layer in layers:
        layer.pooling = True
    try:
        made = network(parts)
        return made, torch.cat([layer.pooled.flatten() for layer in layers] or [parts.new_zeros(0)])
    finally:
        for layer in layers:
            layer.pooling, layer.pooled = False, None
