"""Instance norm whose statistics can be given, so that all tiles of one image are normalised alike.

Normalised each by itself, tiles disagree where they meet, and the noise of a tile of plain sky is scaled up to full
contrast. So the statistics are taken from (parts of) the whole image first and then given to every tile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from models import deadline

PART_SIDE, PARTS_PER_SIDE = 256, 3
"""Statistics come from at most 3 x 3 evenly spaced parts of this side in pixels, which bounds the memory."""


class InstanceNorm(nn.InstanceNorm2d):
    """(x - mean) / sqrt(variance + eps) per image and channel, without weights (Ulyanov et al. 2016).

    Statistics that are given are known to the present thread alone, so that calls on one network may alternate.
    """

    def forward(self, features: Tensor) -> Tensor:
        deadline.check()  # between the layers: a pass over a large image takes seconds
        statistics = (_GIVEN.get() or {}).get(self)
        if (pooled := _POOLED.get()) is not None:
            over = (0, 2, 3)
            statistics = torch.stack([features.mean(over), features.var(over, unbiased=False)])[None]
            pooled[self] = statistics
        if statistics is None:
            return super().forward(features)
        mean, variance = statistics[..., None, None].unbind(1)
        return (features - mean) * (variance + self.eps).rsqrt()


_GIVEN: ContextVar[dict[InstanceNorm, Tensor] | None] = ContextVar("given", default=None)
"""(B, 2, C) for each layer: mean and variance to use instead of the features' own."""
_POOLED: ContextVar[dict[InstanceNorm, Tensor] | None] = ContextVar("pooled", default=None)
"""(1, 2, C) for each layer: statistics over the whole batch, whose images are parts of one image and share them."""


def instance_norms(network: nn.Module) -> list[InstanceNorm]:
    """The instance norms of a network, in the order in which they were built."""
    return [module for module in network.modules() if isinstance(module, InstanceNorm)]


@contextmanager
def normalised(network: nn.Module, statistics: Tensor) -> Iterator[None]:
    """Inside, every instance norm of `network` uses its part of `statistics` (B, S), a row per image."""
    layers = instance_norms(network)
    parts = statistics.split([2 * layer.num_features for layer in layers], 1)
    token = _GIVEN.set(
        {layer: part.unflatten(1, (2, layer.num_features)) for layer, part in zip(layers, parts, strict=True)}
    )
    try:
        yield
    finally:
        _GIVEN.reset(token)


@torch.no_grad()
def pooled_forward(network: nn.Module, parts: Tensor) -> tuple[Tensor, Tensor]:
    """The output of `network` for parts (B, C, H, W) of one image normalised together, and the statistics (S,).

    S is twice the channels of all instance norms, in the order in which they were built.
    """
    token = _POOLED.set(pooled := {})
    try:
        outputs = network(parts)
    finally:
        _POOLED.reset(token)
    rows = [pooled[layer].flatten() for layer in instance_norms(network)]
    return outputs, torch.cat(rows or [parts.new_zeros(0)])


def image_statistics(chain: list[nn.Module], image: Tensor) -> list[Tensor]:
    """Statistics (S,) for each network of `chain`, each applied to the output of the one before; image (C, H, W)."""
    parts, statistics = spaced_parts(image), []
    for network in chain:
        parts, row = pooled_forward(network, parts)
        statistics.append(row)
    return statistics


def spaced_parts(image: Tensor) -> Tensor:
    """Evenly spaced square parts (N, C, h, w) of an image (C, H, W): all of it up to 3 x PART_SIDE pixels a side."""
    slices = []
    for length in image.shape[-2:]:
        side = min(PART_SIDE, length)
        count = min(PARTS_PER_SIDE, -(-length // side))
        places = torch.linspace(0, length - side, count).round().long().tolist()
        slices.append([slice(start, start + side) for start in places])
    return torch.stack([image[:, rows, columns] for rows in slices[0] for columns in slices[1]])
