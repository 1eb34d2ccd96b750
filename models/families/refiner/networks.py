"""The refiner network: warps and repaints an image; each noise vector gives another result."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.encoders import pyramid

CONTROL = 4
"""Points along each side whose displacements make up the coarse part of a field."""


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer, answering zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class QuantiseStraightThrough(torch.autograd.Function):
    """Values as the 8 bits of a picture show them. Gradients pass, but never further beyond black or white.

    Without it a background that is a little off black gives every refined image away.
    """

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return (values.clamp(0, 1) * 255).round() / 255

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        outwards = ((values < 0) & (slope > 0)) | ((values > 1) & (slope < 0))
        return slope.masked_fill(outwards, 0)


class Modulation(nn.Module):
    """Scales and shifts features (b, c, h, w) as the noise (b, d) says (Perez et al. 2018, FiLM); d may be 0."""

    def __init__(self, noise: int, channels: int):
        super().__init__()
        self.layer = nn.Linear(noise, 2 * channels) if noise else None

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        if self.layer is None:
            return features
        scale, shift = self.layer(noise)[:, :, None, None].chunk(2, 1)
        return features * (1 + scale) + shift


class Block(nn.Module):
    """x + conv(relu(conv(x))), then ReLU: the paper's residual block, without normalisation."""

    def __init__(self, width: int, noise: int):
        super().__init__()
        self.noise = Modulation(noise, width)
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        features = self.noise(features, noise)
        return F.relu(features + self.layers(features))


class Warp(nn.Module):
    """Displaces pixels along a smooth field that image and noise decide: strokes bend and lean, which values cannot.

    The field is that of an affine map, of a few control points which have seen the whole image, and of a finer grid.
    """

    def __init__(self, shape: tuple[int, int, int], farthest: float, noise: int):
        super().__init__()
        self.farthest = farthest
        sizes = pyramid(*shape[1:])
        widths = [shape[0], *(min(64, 16 * level) for level in range(1, len(sizes)))]
        stages = list(zip(pairwise(widths), pairwise(sizes), strict=True))
        strides = [tuple(2 if a != b else 1 for a, b in zip(big, small, strict=True)) for _, (big, small) in stages]
        self.layers = nn.ModuleList(
            nn.Conv2d(*channels, 3, stride, 1) for (channels, _), stride in zip(stages, strides, strict=True)
        )
        self.noise = nn.ModuleList(Modulation(noise, width) for width in widths[1:])
        self.whole = nn.Sequential(nn.Linear(widths[-1] * math.prod(sizes[-1]) + noise, 128), nn.SiLU())
        self.last = zeroed(nn.Linear(128, 2 * CONTROL**2 + 6))
        self.fine = zeroed(nn.Conv2d(widths[-2], 2, 3, 1, 1)) if len(stages) > 1 else None

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c, h, w) -> the same displaced, and the mean displacement in shares of the side."""
        field = self.farthest * torch.tanh(self._field(images, noise))  # (b, 2, h, w)
        grid = _places(images) + 2 * field.permute(0, 2, 3, 1)
        moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
        return moved, field.abs().mean()

    def _field(self, images: Tensor, noise: Tensor) -> Tensor:
        size, levels = images.shape[2:], [images * 2 - 1]
        for layer, shaken in zip(self.layers, self.noise, strict=True):
            levels.append(F.silu(shaken(layer(levels[-1]), noise)))
        found = self.last(self.whole(torch.cat([levels[-1].flatten(1), noise], 1)))
        points, affine = found.split([2 * CONTROL**2, 6], 1)
        lean, move = affine[:, :4].unflatten(1, (1, 2, 2)), affine[:, None, None, 4:]
        field = (_places(images) @ lean + move).permute(0, 3, 1, 2) + _widened(
            points.unflatten(1, (2, CONTROL, -1)), size
        )
        return field if self.fine is None else field + _widened(self.fine(levels[-2]), size) / 2


def _places(images: Tensor) -> Tensor:
    """(1, h, w, 2): where the pixels are, across and along, from -1 at one border to 1 at the other."""
    height, width = images.shape[2:]
    along, across = ((torch.arange(n, device=images.device) * 2 + 1) / n - 1 for n in (height, width))
    return torch.stack([across.expand(height, -1), along[:, None].expand(-1, width)], 2)[None]


def _widened(field: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(field, size, mode="bicubic", align_corners=False)


class RefinerNet(nn.Module):
    """Starts as the identity: its last layers are zero and its input is added, in place of a warm-up.

    Residual blocks work at half the resolution, beside what the full one shows.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, blocks: int, farthest: float, noise: int):
        super().__init__()
        channels, thin = shape[0], max(4, width // 2)
        self.warp = Warp(shape, farthest, noise) if farthest else None
        self.first = nn.Sequential(nn.Conv2d(channels, thin, 3, 1, 1), nn.ReLU())
        self.halved = nn.Sequential(nn.Conv2d(thin, width, 3, 2, 1), nn.ReLU())
        self.blocks = nn.ModuleList(Block(width, noise) for _ in range(blocks))
        self.joined = nn.Sequential(
            nn.Conv2d(thin + width, thin, 3, 1, 1), nn.ReLU(), nn.Conv2d(thin, thin, 3, 1, 1), nn.ReLU()
        )
        self.last = zeroed(nn.Conv2d(thin, channels, 1))

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        return self.measured(images, noise)[0]

    def measured(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """R(x), not limited to [0, 1], and how far it is from x. `noise` is (b, d)."""
        images, far = self.warp(images, noise) if self.warp else (images, images.new_zeros(()))
        fine = self.first(images * 2 - 1)
        coarse = self.halved(fine)
        for block in self.blocks:
            coarse = block(coarse, noise)
        coarse = F.interpolate(coarse, images.shape[2:], mode="bilinear", align_corners=False)
        change = self.last(self.joined(torch.cat([fine, coarse], 1)))
        return images + change, change.abs().mean() + far
