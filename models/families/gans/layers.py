"""Layers of the adversarial bodies: resampling between grids, norms that may take a condition, dropout, stddev.

Serving sees one row at a time: whatever looks across a batch while training uses stored statistics in eval mode.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

Size = tuple[int, int]
Norm = Literal["none", "batch", "spectral", "pixel"]


def strides(small: Size, big: Size) -> Size:
    """How many times longer each side of `big` is: 1 or 2."""
    return tuple(2 if long != short else 1 for long, short in zip(big, small, strict=True))


def even(features: Tensor, factors: Size) -> Tensor:
    """The last row and column repeated where a side to be halved is odd."""
    bottom = features.shape[2] % factors[0]
    right = features.shape[3] % factors[1]
    return F.pad(features, (0, right, 0, bottom), mode="replicate") if bottom or right else features


def halve(images: Tensor, factors: Size = (2, 2)) -> Tensor:
    """The mean of each 2x2 block; sides halve, rounding up."""
    return F.avg_pool2d(even(images, factors), factors) if factors != (1, 1) else images


def double(images: Tensor, size: Size) -> Tensor:
    """Each pixel twice along the sides that grow, cropped to `size`."""
    rows, columns = strides(images.shape[2:], size)
    if rows == 2:
        images = images.repeat_interleave(2, 2)
    if columns == 2:
        images = images.repeat_interleave(2, 3)
    return images[:, :, : size[0], : size[1]]


def smeared(kernel: Tensor, factors: Size) -> Tensor:
    """The kernel of a transposed convolution equal to doubling pixels and then convolving with `kernel` (o, i, 3, 3).

    Along a doubled side taps that meet the same pixel add up: 4 taps with stride 2, so 4/9 of the products.
    """
    if factors[0] == 2:
        kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
    if factors[1] == 2:
        kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
    return kernel


def doubling_conv(features: Tensor, kernel: Tensor, size: Size, bias: Tensor | None = None) -> Tensor:
    """conv2d(double(features, size), kernel, padding=1) with kernel (o, i, 3, 3), at the cost of the small grid."""
    factors = strides(features.shape[2:], size)
    if factors == (1, 1):
        return F.conv2d(features, kernel, bias, padding=1)
    kernel = smeared(kernel, factors).flip(2, 3).transpose(0, 1)
    rows, columns = (factor * side - out for factor, side, out in zip(factors, features.shape[2:], size, strict=True))
    grown = F.conv_transpose2d(features, kernel, bias, factors, padding=1)
    if not (rows or columns):
        return grown
    return grown[:, :, : size[0], : size[1]]


def halving_conv(features: Tensor, kernel: Tensor, factors: Size, bias: Tensor | None = None) -> Tensor:
    """halve(conv2d(features, kernel, padding=1), factors) with kernel (o, i, 3, 3), at the cost of the small grid.

    Odd sides are made even before the convolution.
    """
    kernel = smeared(kernel, factors) / (factors[0] * factors[1])
    return F.conv2d(even(features, factors), kernel, bias, factors, padding=1)


class Upsample(nn.Conv2d):
    """Nearest neighbours, then a 3x3 convolution: no checkerboard (Odena et al. 2016)."""

    def __init__(self, before: int, after: int, size: Size, bias: bool = True):
        super().__init__(before, after, 3, padding=1, bias=bias)
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        return doubling_conv(features, self.weight, self.size, self.bias)


class Transposed(nn.ConvTranspose2d):
    """The 4x4 transposed convolution of DCGAN, cropped to `size`; 3x3 along a side that does not grow."""

    def __init__(self, before: int, after: int, small: Size, size: Size, bias: bool = True):
        factors = strides(small, size)
        super().__init__(before, after, tuple(2 + factor for factor in factors), factors, 1, bias=bias)
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features)[:, :, : self.size[0], : self.size[1]]


class Downsample(nn.Module):
    """A convolution that halves the sides which shrink, rounding up: by stride, or by averaging or the maximum."""

    def __init__(self, before: int, after: int, big: Size, small: Size, how: str, norm: Norm, bias: bool = True):
        super().__init__()
        self.factors, self.how = strides(small, big), how
        if how == "stride":
            conv = nn.Conv2d(before, after, tuple(2 + factor for factor in self.factors), self.factors, 1, bias=bias)
        else:
            conv = nn.Conv2d(before, after, 3, padding=1, bias=bias)
        self.conv = spectral_norm(conv) if norm == "spectral" else conv

    def forward(self, features: Tensor) -> Tensor:
        if self.how == "stride":
            return self.conv(even(features, self.factors))
        pool = F.avg_pool2d if self.how == "average" else F.max_pool2d
        return pool(even(self.conv(features), self.factors), self.factors)


class PixelNorm(nn.Module):
    """Each pixel's feature vector brought to unit mean square (Karras et al. 2018, section 4.2)."""

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        return features * torch.rsqrt(features.square().mean(1, keepdim=True) + 1e-8)


class Unnormalised(nn.Module):
    """No norm, in the place of one."""

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        return features


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of maps (b, c, h, w); with a condition (b, k) it decides gain and shift (de Vries et al. 2017)."""

    def __init__(self, channels: int, condition_dim: int = 0):
        super().__init__(channels, affine=condition_dim == 0)
        if condition_dim:
            self.gain = nn.Linear(condition_dim, channels, bias=False)
            self.shift = nn.Linear(condition_dim, channels, bias=False)
            nn.init.zeros_(self.gain.weight)
            nn.init.zeros_(self.shift.weight)

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        out = super().forward(features)
        if self.affine:
            return out
        return out * (1 + self.gain(condition)[:, :, None, None]) + self.shift(condition)[:, :, None, None]


def norm_layer(kind: Norm, channels: int, condition_dim: int = 0) -> nn.Module:
    """The layer after a convolution; spectral norm sits on the convolution itself."""
    if kind == "batch":
        return BatchNorm(channels, condition_dim)
    return PixelNorm() if kind == "pixel" else Unnormalised()


def latents_of(noise: Tensor, law: Literal["normal", "sphere", "uniform"]) -> Tensor:
    """Latents of a law from standard normal noise (b, d), row by row; the sphere has radius sqrt(d)."""
    if law == "sphere":
        return noise * torch.rsqrt(noise.square().mean(1, keepdim=True) + 1e-8)
    return torch.erf(noise / 2**0.5) if law == "uniform" else noise


class Maxout(nn.Module):
    """The largest of `pieces` linear maps per unit (Goodfellow et al. 2013)."""

    def __init__(self, before: int, after: int, pieces: int = 5):
        super().__init__()
        self.linear, self.pieces = nn.Linear(before, after * pieces), pieces

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features).unflatten(1, (-1, self.pieces)).amax(2)


class ChannelDropout(nn.Module):
    """Dropout of whole channels in the generator, by choice also when sampling.

    Then the latents themselves decide the mask, through single products that no neighbour or batch size can round
    otherwise: the same latents give the same image.
    """

    def __init__(self, channels: int, rate: float, when_sampling: bool):
        super().__init__()
        self.rate, self.when_sampling = rate, when_sampling
        index = torch.arange(1, channels + 1, dtype=torch.float64)
        self.register_buffer("keys", (200 + 800 * (index * (math.sqrt(5) - 1) / 2).frac()).float(), persistent=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        if not self.rate or not (self.training or self.when_sampling):
            return features
        if self.training:
            chance = torch.rand(features.shape[:2], device=features.device)
        else:
            source = torch.arange(features.shape[1], device=latents.device) % latents.shape[1]
            chance = (latents[:, source].abs() * self.keys).frac()  # (b, c)
        kept = (chance >= self.rate).to(features) / (1 - self.rate)
        return features * kept.reshape(*features.shape[:2], *[1] * (features.ndim - 2))


class MinibatchStddev(nn.Module):
    """Appends a map with the spread of a group of images (Karras et al. 2018, section 3).

    In eval mode every image gets the running mean of that spread, so none sees its neighbours.
    """

    momentum = 0.05

    def __init__(self, group: int = 4):
        super().__init__()
        self.group = group
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        b, c, h, w = features.shape
        if not self.training:
            return torch.cat([features, self.mean.expand(b, 1, h, w)], 1)
        group = next((size for size in range(min(self.group, b), 1, -1) if b % size == 0), b)
        grouped = features.reshape(group, b // group, c, h, w)
        variance = (grouped - grouped.mean(0)).square().mean(0)
        spread = (variance + 1e-8).sqrt().mean((1, 2, 3))  # (b / group,)
        with torch.no_grad():
            self.mean.lerp_(spread.float().mean(), self.momentum)
        return torch.cat([features, spread.repeat(group)[:, None, None, None].expand(b, 1, h, w)], 1)


def settle(network: nn.Module, run: Callable[[], object], batches: int) -> None:
    """Replace the statistics of the network's batch norms by their means over `batches` calls of `run`.

    An averaged network has other activations than the one whose statistics it inherited.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean
        layer.train()
    with torch.no_grad():
        for _ in range(batches if norms else 0):
            run()
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
