"""The principal axes of a dataset as a fixed linear way into a code and back: a network adds what they miss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.data import Columns
from models.evaluation.metrics import NUMBERS, ROWS, principal_axes, spread

MOST = 4_000_000
"""Numbers in the axes; larger images are averaged over cells first."""


class Principal(nn.Module):
    """(b, c, h, w) -> (b, d) and back, by buffers that `fit` fills once; before that both are zero."""

    def __init__(self, shape: tuple[int, int, int], latent_dim: int):
        super().__init__()
        self.shape, self.cell = shape, 1
        while math.prod(self.small) * latent_dim > MOST:
            self.cell += 1
        self.register_buffer("mean", torch.zeros(math.prod(self.small)))
        self.register_buffer("axes", torch.zeros(latent_dim, math.prod(self.small)))

    @property
    def small(self) -> tuple[int, int, int]:
        channels, height, width = self.shape
        return channels, -(-height // self.cell), -(-width // self.cell)

    @torch.no_grad()
    def fit(self, train: Columns) -> None:
        """Mean and axes of at most 10 000 training images and 128 MB."""
        device = self.mean.device
        limit = max(2, min(ROWS, NUMBERS // math.prod(self.shape)))
        rows = torch.cat([self._cells(images.to(device)) for images in spread(train, limit=limit)])
        self.mean.copy_(rows.mean(0))
        found = principal_axes(rows - self.mean, min(len(self.axes), *rows.shape))
        self.axes[: len(found)] = found

    def encode(self, images: Tensor) -> Tensor:
        return (self._cells(images) - self.mean) @ self.axes.T

    def decode(self, codes: Tensor) -> Tensor:
        images = (codes @ self.axes + self.mean).unflatten(1, self.small)
        if self.cell == 1:
            return images
        return F.interpolate(images, self.shape[1:], mode="bilinear", align_corners=False)

    def _cells(self, images: Tensor) -> Tensor:
        return (images if self.cell == 1 else F.adaptive_avg_pool2d(images, self.small[1:])).flatten(1)


class OverAxes(nn.Module):
    """An encoder whose code is what the axes give plus what `body` adds; `body` starts by adding nothing."""

    def __init__(self, body: nn.Module, shape: tuple[int, int, int], latent_dim: int):
        super().__init__()
        self.body, self.axes = body, Principal(shape, latent_dim)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the code of the body."""
        return self.body.last

    def features(self, images: Tensor) -> Tensor:
        """(b, f): what the last layer reads."""
        return self.body.features(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) + self.axes.encode(images)


def silence(layer: nn.Module) -> None:
    """Make the last convolution or linear layer within `layer` give zero."""
    last = [part for part in layer.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def explained(train: Columns, latent_dim: int) -> float:
    """Share of the variance of images that axes fitted to others explain, of at most 5000 rows and 128 MB; in [0, 1].

    One training image in five is left out of the fit: few images are always explained by axes of their own.
    """
    images = train.columns["images"]
    limit = max(2, min(ROWS // 2, NUMBERS // math.prod(images.shape[1:])))
    rows = torch.cat([part.flatten(1) for part in spread(train, limit=limit)])
    away = torch.arange(len(rows)) % 5 == 4
    if not away.any() or away.all():
        return 0.0
    known, other = rows[~away], rows[away] - rows[~away].mean(0)
    axes = principal_axes(known - known.mean(0), min(latent_dim, *known.shape))
    left = (other - other @ axes.T @ axes).square().sum()
    return max(0.0, 1 - float(left / other.square().sum().clamp_min(1e-12)))
