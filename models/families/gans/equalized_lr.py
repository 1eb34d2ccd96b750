"""Layers whose weights are N(0, 1) and scaled when used, so that all learn at one pace (Karras et al. 2018, 4.1)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.gans.layers import doubling_conv, halving_conv
from models.nn.encoders import Size


class Equalised(nn.Module):
    """Weight (out, in, ...) and bias; `scaled()` is the weight with He's constant."""

    def __init__(self, *shape: int, gain: float = math.sqrt(2), pace: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / pace)
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.scale, self.pace = gain * pace / math.sqrt(math.prod(shape[1:])), pace

    def scaled(self) -> Tensor:
        return self.weight * self.scale


class EqualisedConv(Equalised):
    """A convolution of odd width that keeps the grid."""

    def __init__(self, before: int, after: int, width: int = 3, gain: float = math.sqrt(2)):
        super().__init__(after, before, width, width, gain=gain)

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.scaled(), self.bias, padding=self.weight.shape[2] // 2)


class EqualisedUpsample(Equalised):
    """Doubled pixels, then a 3x3 convolution, onto the grid `size`."""

    def __init__(self, before: int, after: int, size: Size):
        super().__init__(after, before, 3, 3)
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        return doubling_conv(features, self.scaled(), self.size, self.bias)


class EqualisedDownsample(Equalised):
    """A 3x3 convolution, then the mean of each block."""

    def __init__(self, before: int, after: int, factors: Size):
        super().__init__(after, before, 3, 3)
        self.factors = factors

    def forward(self, features: Tensor) -> Tensor:
        return halving_conv(features, self.scaled(), self.factors, self.bias)


class EqualisedLinear(Equalised):
    """(b, in) -> (b, out); `pace` slows or speeds its learning, `start` is its bias at first."""

    def __init__(self, before: int, after: int, gain: float = math.sqrt(2), pace: float = 1.0, start: float = 0.0):
        super().__init__(after, before, gain=gain, pace=pace)
        nn.init.constant_(self.bias, start / pace)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.scaled(), self.bias * self.pace)
