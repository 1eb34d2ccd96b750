"""Layers of the GANs: resampling between sizes, norms with an optional condition, dropout, minibatch stddev.

Layers that mix rows of a batch in training use stored statistics in eval mode, so that a served row depends on itself
alone.
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
    """Factor from each side of `small` to that of `big`: 1 or 2."""
    return tuple(2 if long != short else 1 for long, short in zip(big, small, strict=True))


def pad_to_even(features: Tensor, factors: Size) -> Tensor:
    """Repeats the last row or column where a side that will be halved is odd."""
    bottom = features.shape[2] % factors[0]
    right = features.shape[3] % factors[1]
    return F.pad(features, (0, right, 0, bottom), mode="replicate") if bottom or right else features


def halve(images: Tensor, factors: Size = (2, 2)) -> Tensor:
    """The mean of each block of `factors` pixels; sides shrink accordingly, rounded up."""
    return F.avg_pool2d(pad_to_even(images, factors), factors) if factors != (1, 1) else images


def double(images: Tensor, size: Size) -> Tensor:
    """Nearest-neighbour upsampling by 2 along the sides that grow, cropped to `size`."""
    rows, columns = strides(images.shape[2:], size)
    if rows == 2:
        images = images.repeat_interleave(2, 2)
    if columns == 2:
        images = images.repeat_interleave(2, 3)
    return images[:, :, : size[0], : size[1]]


def merged_kernel(kernel: Tensor, factors: Size) -> Tensor:
    """The kernel of a strided convolution that equals upsampling by `factors`, then `kernel` (o, i, 3, 3).

    Along a doubled side two taps read the same source pixel and are added: 4 taps with stride 2, 4/9 of the products.
    """
    if factors[0] == 2:
        kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
    if factors[1] == 2:
        kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
    return kernel


def low_passed(kernel: Tensor, factors: Size) -> Tensor:
    """A `merged_kernel` followed by the filter [1, 2, 1] / 4 along the doubled sides, where it has 6 taps instead of 4.

    Nearest-neighbour upsampling and this are the filter [1, 3, 3, 1] of StyleGAN (Karras et al. 2019, section 3):
    without it, copies of the spectrum of the smaller size show as a lattice.
    """
    if factors[0] == 2:
        kernel = F.pad(kernel, (0, 0, 1, 1)) / 2 + (F.pad(kernel, (0, 0, 0, 2)) + F.pad(kernel, (0, 0, 2, 0))) / 4
    if factors[1] == 2:
        kernel = F.pad(kernel, (1, 1)) / 2 + (F.pad(kernel, (0, 2)) + F.pad(kernel, (2, 0))) / 4
    return kernel


def doubling_conv(
    features: Tensor, kernel: Tensor, size: Size, bias: Tensor | None = None, low_pass: bool = False
) -> Tensor:
    """conv2d(double(features, size), kernel, padding=1) with kernel (o, i, 3, 3), computed at the small size.

    With `low_pass` the result is filtered by `low_passed`.
    """
    factors = strides(features.shape[2:], size)
    if factors == (1, 1):
        return F.conv2d(features, kernel, bias, padding=1)
    kernel, padding = merged_kernel(kernel, factors), (1, 1)
    if low_pass:
        kernel, padding = low_passed(kernel, factors), factors
    kernel = kernel.flip(2, 3).transpose(0, 1)
    rows, columns = (factor * side - out for factor, side, out in zip(factors, features.shape[2:], size, strict=True))
    upsampled = F.conv_transpose2d(features, kernel, bias, factors, padding=padding)
    if not (rows or columns):
        return upsampled
    return upsampled[:, :, : size[0], : size[1]]


def halving_conv(features: Tensor, kernel: Tensor, factors: Size, bias: Tensor | None = None) -> Tensor:
    """halve(conv2d(features, kernel, padding=1), factors) with kernel (o, i, 3, 3), computed at the small size.

    Odd sides are padded to even before the convolution.
    """
    kernel = merged_kernel(kernel, factors) / (factors[0] * factors[1])
    return F.conv2d(pad_to_even(features, factors), kernel, bias, factors, padding=1)


class Upsample(nn.Conv2d):
    """Nearest-neighbour upsampling to `size`, then a 3x3 convolution: no checkerboard artefacts (Odena et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, size: Size, bias: bool = True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        return doubling_conv(features, self.weight, self.size, self.bias)


class Transposed(nn.ConvTranspose2d):
    """The 4x4 transposed convolution of DCGAN, cropped to `size`; 3x3 along a side that does not grow."""

    def __init__(self, in_channels: int, out_channels: int, small: Size, size: Size, bias: bool = True):
        factors = strides(small, size)
        super().__init__(in_channels, out_channels, tuple(2 + factor for factor in factors), factors, 1, bias=bias)
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features)[:, :, : self.size[0], : self.size[1]]


class Downsample(nn.Module):
    """A convolution that halves the sides that shrink, rounded up. `how`: stride, average or max pooling."""

    def __init__(
        self, in_channels: int, out_channels: int, big: Size, small: Size, how: str, norm: Norm, bias: bool = True
    ):
        super().__init__()
        self.factors, self.how = strides(small, big), how
        if how == "stride":
            conv = nn.Conv2d(
                in_channels, out_channels, tuple(2 + factor for factor in self.factors), self.factors, 1, bias=bias
            )
        else:
            conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.conv = spectral_norm(conv) if norm == "spectral" else conv

    def forward(self, features: Tensor) -> Tensor:
        if self.how == "stride":
            return self.conv(pad_to_even(features, self.factors))
        pool = F.avg_pool2d if self.how == "average" else F.max_pool2d
        return pool(pad_to_even(self.conv(features), self.factors), self.factors)


class PixelNorm(nn.Module):
    """Scales the features of each pixel to unit mean square: x / sqrt(mean x^2) (Karras et al. 2018, section 4.2)."""

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        return features * torch.rsqrt(features.square().mean(1, keepdim=True) + 1e-8)


class NoNorm(nn.Module):
    """The identity, with the signature of a norm."""

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        return features


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of (b, c, h, w); a condition (b, k) sets gain and shift per channel (de Vries et al. 2017)."""

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
    """The norm after a convolution; spectral norm is applied to the convolution itself."""
    if kind == "batch":
        return BatchNorm(channels, condition_dim)
    return PixelNorm() if kind == "pixel" else NoNorm()


def latents_of(noise: Tensor, distribution: Literal["normal", "sphere", "uniform"]) -> Tensor:
    """Standard normal noise (b, d) -> latents: unchanged, on the sphere of radius sqrt(d), or uniform in (-1, 1)."""
    if distribution == "sphere":
        return noise * torch.rsqrt(noise.square().mean(1, keepdim=True) + 1e-8)
    return torch.erf(noise / 2**0.5) if distribution == "uniform" else noise


class Maxout(nn.Module):
    """Each unit is the maximum of `pieces` linear maps (Goodfellow et al. 2013)."""

    def __init__(self, in_features: int, out_features: int, pieces: int = 5):
        super().__init__()
        self.linear, self.pieces = nn.Linear(in_features, out_features * pieces), pieces

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features).unflatten(1, (-1, self.pieces)).amax(2)


class ChannelDropout(nn.Module):
    """Dropout of whole channels in the generator; with `when_sampling` also in eval mode.

    In eval mode the mask is a function of the latents: the same latents give the same image. Each mask entry comes
    from one product, whose rounding does not depend on the batch.
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
            uniform = torch.rand(features.shape[:2], device=features.device)
        else:
            source = torch.arange(features.shape[1], device=latents.device) % latents.shape[1]
            uniform = (latents[:, source].abs() * self.keys).frac()  # (b, c)
        mask = (uniform >= self.rate).to(features) / (1 - self.rate)
        return features * mask.reshape(*features.shape[:2], *[1] * (features.ndim - 2))


class MinibatchStddev(nn.Module):
    """Appends a map with the standard deviation over a group of images, averaged over features and pixels.

    Karras et al. 2018, section 3. In eval mode every image gets the running mean of it, so rows are independent.
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
        stddev = (variance + 1e-8).sqrt().mean((1, 2, 3))  # (b / group,)
        with torch.no_grad():
            self.mean.lerp_(stddev.float().mean(), self.momentum)
        return torch.cat([features, stddev.repeat(group)[:, None, None, None].expand(b, 1, h, w)], 1)


def recalibrate_batch_norm(network: nn.Module, run: Callable[[], object], batches: int) -> None:
    """Replace the batch norm statistics of `network` by their means over `batches` calls of `run`, which applies it.

    An averaged network needs its own: it has other activations than the network whose statistics it copied.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative mean
        layer.train()
    with torch.no_grad():
        for _ in range(batches if norms else 0):
            run()
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
