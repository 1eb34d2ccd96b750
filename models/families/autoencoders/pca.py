"""A fixed linear autoencoder on the principal axes of a dataset, to which a network adds its output."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.data import Columns
from models.evaluation.metrics import NUMBERS, ROWS, principal_axes, spaced_rows

MAX_NUMBERS = 4_000_000
"""Numbers in the axes, at most; larger images are averaged over square cells first."""


class PrincipalAxes(nn.Module):
    """(b, c, h, w) -> (b, d) and back; mean and axes are buffers of zeros until `fit`."""

    def __init__(self, shape: tuple[int, int, int], latent_dim: int):
        super().__init__()
        self.shape, self.cell = shape, 1
        while math.prod(self.small) * latent_dim > MAX_NUMBERS:
            self.cell += 1
        self.register_buffer("mean", torch.zeros(math.prod(self.small)))
        self.register_buffer("axes", torch.zeros(latent_dim, math.prod(self.small)))

    @property
    def small(self) -> tuple[int, int, int]:
        """(c, h, w) after averaging over cells."""
        channels, height, width = self.shape
        return channels, -(-height // self.cell), -(-width // self.cell)

    @torch.no_grad()
    def fit(self, train: Columns) -> None:
        """Compute mean and axes from at most 10 000 training images and 128 MB."""
        device = self.mean.device
        limit = max(2, min(ROWS, NUMBERS // math.prod(self.shape)))
        rows = torch.cat([self._cells(images.to(device)) for images in spaced_rows(train, limit=limit)])
        self.mean.copy_(rows.mean(0))
        axes = principal_axes(rows - self.mean, min(len(self.axes), *rows.shape))
        self.axes[: len(axes)] = axes

    def encode(self, images: Tensor) -> Tensor:
        return (self._cells(images) - self.mean) @ self.axes.T

    def decode(self, codes: Tensor) -> Tensor:
        images = (codes @ self.axes + self.mean).unflatten(1, self.small)
        if self.cell == 1:
            return images
        return F.interpolate(images, self.shape[1:], mode="bilinear", align_corners=False)

    def _cells(self, images: Tensor) -> Tensor:
        return (images if self.cell == 1 else F.adaptive_avg_pool2d(images, self.small[1:])).flatten(1)


class PCAEncoder(nn.Module):
    """The projection on the principal axes plus the output of `body`, (b, c, h, w) -> (b, d)."""

    def __init__(self, body: nn.Module, shape: tuple[int, int, int], latent_dim: int):
        super().__init__()
        self.body, self.axes = body, PrincipalAxes(shape, latent_dim)

    @property
    def last(self) -> nn.Linear:
        """The last layer of the body."""
        return self.body.last

    def features(self, images: Tensor) -> Tensor:
        """(b, f): the input of the last layer."""
        return self.body.features(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) + self.axes.encode(images)


def zero_output(layer: nn.Module) -> None:
    """Set the weights and biases of the last convolution or linear layer within `layer` to zero."""
    last = [part for part in layer.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def explained_variance(train: Columns, latent_dim: int) -> float:
    """Share of the variance of images explained by principal axes fitted to other images, in [0, 1].

    Uses at most 5000 rows and 128 MB. Every fifth image is held out of the fit: a few images would be explained by
    axes fitted to themselves.
    """
    images = train.columns["images"]
    limit = max(2, min(ROWS // 2, NUMBERS // math.prod(images.shape[1:])))
    rows = torch.cat([part.flatten(1) for part in spaced_rows(train, limit=limit)])
    held_out = torch.arange(len(rows)) % 5 == 4
    if not held_out.any() or held_out.all():
        return 0.0
    fitted, other = rows[~held_out], rows[held_out] - rows[~held_out].mean(0)
    axes = principal_axes(fitted - fitted.mean(0), min(latent_dim, *fitted.shape))
    residual = (other - other @ axes.T @ axes).square().sum()
    return max(0.0, 1 - float(residual / other.square().sum().clamp_min(1e-12)))
