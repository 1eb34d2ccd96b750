"""Layers with equalized learning rate: weights start as N(0, 1) and are scaled at run time by He's constant, so that
Adam moves all of them equally fast (Karras et al. 2018, section 4.1)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.gans.layers import doubling_conv, halving_conv
from models.nn.encoders import Size


class EqualizedLayer(nn.Module):
    """Weight (out, in, ...) and bias. `lr_multiplier` < 1 slows learning without changing the initial function."""

    def __init__(self, *shape: int, gain: float = math.sqrt(2), lr_multiplier: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / lr_multiplier)
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.scale = gain * lr_multiplier / math.sqrt(math.prod(shape[1:]))  # gain / sqrt(fan in) is He's constant
        self.lr_multiplier = lr_multiplier

    def scaled(self) -> Tensor:
        """The weight as the layer uses it."""
        return self.weight * self.scale


class EqualizedConv(EqualizedLayer):
    """A convolution with an odd kernel width that keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 3, gain: float = math.sqrt(2)):
        super().__init__(out_channels, in_channels, width, width, gain=gain)

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.scaled(), self.bias, padding=self.weight.shape[2] // 2)


class EqualizedUpsample(EqualizedLayer):
    """Nearest-neighbour upsampling to `size`, then a 3x3 convolution, with `low_pass` filtered by `low_passed`."""

    def __init__(self, in_channels: int, out_channels: int, size: Size, low_pass: bool):
        super().__init__(out_channels, in_channels, 3, 3)
        self.size, self.low_pass = size, low_pass

    def forward(self, features: Tensor) -> Tensor:
        return doubling_conv(features, self.scaled(), self.size, self.bias, self.low_pass)


class EqualizedDownsample(EqualizedLayer):
    """A 3x3 convolution, then the mean of each block of `factors` pixels."""

    def __init__(self, in_channels: int, out_channels: int, factors: Size):
        super().__init__(out_channels, in_channels, 3, 3)
        self.factors = factors

    def forward(self, features: Tensor) -> Tensor:
        return halving_conv(features, self.scaled(), self.factors, self.bias)


class EqualizedLinear(EqualizedLayer):
    """(b, in) -> (b, out); `bias` is the initial bias."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        gain: float = math.sqrt(2),
        lr_multiplier: float = 1.0,
        bias: float = 0.0,
    ):
        super().__init__(out_features, in_features, gain=gain, lr_multiplier=lr_multiplier)
        nn.init.constant_(self.bias, bias / lr_multiplier)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.scaled(), self.bias * self.lr_multiplier)
