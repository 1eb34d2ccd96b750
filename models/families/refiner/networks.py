"""The refiner network: warps an image and changes its pixel values, depending on a noise vector."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.encoders import pyramid

CONTROL = 4
"""Control points along each side of the coarse displacement field."""


def zero_output(layer: nn.Module) -> nn.Module:
    """The layer with zero weights and biases."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class QuantiseStraightThrough(torch.autograd.Function):
    """Rounds values to 8 bits in [0, 1]. The gradient passes unchanged, except where it would move a value outside of
    [0, 1] further away.

    Without it D tells refined images by a background that is not exactly black.
    """

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return (values.clamp(0, 1) * 255).round() / 255

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        outwards = ((values < 0) & (gradient > 0)) | ((values > 1) & (gradient < 0))
        return gradient.masked_fill(outwards, 0)


class Modulation(nn.Module):
    """FiLM (Perez et al. 2018): noise (b, d) gives scale and shift of features (b, c, h, w); identity for d = 0."""

    def __init__(self, noise: int, channels: int):
        super().__init__()
        self.layer = nn.Linear(noise, 2 * channels) if noise else None

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        if self.layer is None:
            return features
        scale, shift = self.layer(noise)[:, :, None, None].chunk(2, 1)
        return features * (1 + scale) + shift


class RefinerBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))): SimGAN's residual block, with FiLM of the noise and without normalisation."""

    def __init__(self, width: int, noise: int):
        super().__init__()
        self.noise = Modulation(noise, width)
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        features = self.noise(features, noise)
        return F.relu(features + self.layers(features))


class Warp(nn.Module):
    """Displaces pixels along a smooth field predicted from image and noise: it bends and slants strokes.

    The field is the sum of an affine map, of CONTROL x CONTROL control points, and of a finer grid.
    """

    def __init__(self, shape: tuple[int, int, int], max_shift: float, noise: int):
        super().__init__()
        self.max_shift = max_shift
        sizes = pyramid(*shape[1:])
        widths = [shape[0], *(min(64, 16 * level) for level in range(1, len(sizes)))]
        stages = list(zip(pairwise(widths), pairwise(sizes), strict=True))
        strides = [tuple(2 if a != b else 1 for a, b in zip(big, small, strict=True)) for _, (big, small) in stages]
        self.layers = nn.ModuleList(
            nn.Conv2d(*channels, 3, stride, 1) for (channels, _), stride in zip(stages, strides, strict=True)
        )
        self.noise = nn.ModuleList(Modulation(noise, width) for width in widths[1:])
        self.whole = nn.Sequential(nn.Linear(widths[-1] * math.prod(sizes[-1]) + noise, 128), nn.SiLU())
        self.last = zero_output(nn.Linear(128, 2 * CONTROL**2 + 6))
        self.fine = zero_output(nn.Conv2d(widths[-2], 2, 3, 1, 1)) if len(stages) > 1 else None

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c, h, w) -> displaced images, and the mean displacement as a fraction of the side."""
        field = self.max_shift * torch.tanh(self._field(images, noise))  # (b, 2, h, w)
        grid = _pixel_grid(images) + 2 * field.permute(0, 2, 3, 1)
        warped = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
        return warped, field.abs().mean()

    def _field(self, images: Tensor, noise: Tensor) -> Tensor:
        size, levels = images.shape[2:], [images * 2 - 1]
        for layer, film in zip(self.layers, self.noise, strict=True):
            levels.append(F.silu(film(layer(levels[-1]), noise)))
        parameters = self.last(self.whole(torch.cat([levels[-1].flatten(1), noise], 1)))
        points, affine = parameters.split([2 * CONTROL**2, 6], 1)
        matrix, shift = affine[:, :4].unflatten(1, (1, 2, 2)), affine[:, None, None, 4:]
        field = (_pixel_grid(images) @ matrix + shift).permute(0, 3, 1, 2) + _resized(
            points.unflatten(1, (2, CONTROL, -1)), size
        )
        return field if self.fine is None else field + _resized(self.fine(levels[-2]), size) / 2


def _pixel_grid(images: Tensor) -> Tensor:
    """(1, h, w, 2): (x, y) of the pixel centres, with the borders of the image at -1 and 1."""
    height, width = images.shape[2:]
    y, x = ((torch.arange(n, device=images.device) * 2 + 1) / n - 1 for n in (height, width))
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], 2)[None]


def _resized(field: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(field, size, mode="bicubic", align_corners=False)


class RefinerNet(nn.Module):
    """R(x, z): the identity at the start, because its last layers are zero and the input is added.

    Residual blocks work at half resolution; features of the full resolution are concatenated.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, blocks: int, max_shift: float, noise: int):
        super().__init__()
        channels, thin = shape[0], max(4, width // 2)
        self.warp = Warp(shape, max_shift, noise) if max_shift else None
        self.first = nn.Sequential(nn.Conv2d(channels, thin, 3, 1, 1), nn.ReLU())
        self.halved = nn.Sequential(nn.Conv2d(thin, width, 3, 2, 1), nn.ReLU())
        self.blocks = nn.ModuleList(RefinerBlock(width, noise) for _ in range(blocks))
        self.joined = nn.Sequential(
            nn.Conv2d(thin + width, thin, 3, 1, 1), nn.ReLU(), nn.Conv2d(thin, thin, 3, 1, 1), nn.ReLU()
        )
        self.last = zero_output(nn.Conv2d(thin, channels, 1))

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        return self.refine(images, noise)[0]

    def refine(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """R(x, z), not clipped to [0, 1], and the self-regularisation psi(R(x, z), x). `noise` z is (b, d).

        psi = mean |change of values| + mean displacement; without warp it is mean |R(x, z) - x|.
        """
        images, displacement = self.warp(images, noise) if self.warp else (images, images.new_zeros(()))
        fine = self.first(images * 2 - 1)
        coarse = self.halved(fine)
        for block in self.blocks:
            coarse = block(coarse, noise)
        coarse = F.interpolate(coarse, images.shape[2:], mode="bilinear", align_corners=False)
        change = self.last(self.joined(torch.cat([fine, coarse], 1)))
        return images + change, change.abs().mean() + displacement
