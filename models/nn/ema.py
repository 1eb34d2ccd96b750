"""Exponential moving averages of a network and of its parameters, with a half-life in images."""

import copy

import torch
from torch import nn


def decay(half_life: float, batch: int) -> float:
    """Weight of the past after an update with `batch` images."""
    return 0.5 ** (batch / max(half_life, 1e-8))


class Ema(nn.Module):
    """A frozen copy of `source`: parameters are averaged with a half-life in images, buffers are copied.

    beta = 0.5 ** (batch / min(half_life, ramp * images_seen)), as in StyleGAN2-ADA (Karras et al. 2020).
    """

    def __init__(self, source: nn.Module, half_life: float = 10_000, ramp: float | None = 0.05):
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False).eval()
        self.half_life, self.ramp = half_life, ramp

    def train(self, mode: bool = True) -> "Ema":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, source: nn.Module, batch: int, images: int) -> None:
        """Average in `source` after an update with `batch` images; `images` is the total so far."""
        half_life = min(self.half_life, self.ramp * images) if self.ramp else self.half_life
        own, theirs = list(self.module.parameters()), list(source.parameters())
        torch._foreach_lerp_(own, theirs, 1 - decay(half_life, batch))
        for buffer, other in zip(self.module.buffers(), source.buffers(), strict=True):
            buffer.copy_(other)

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return self.module(*inputs, **named)


class WeightAverage(nn.Module):
    """Moving averages of the parameters of `source`, which `swap` exchanges with them. Half-life as in `Ema`.

    Unlike Ema it is part of the network that it averages, so there is no second network to choose from.
    """

    training_only = True

    def __init__(self, source: nn.Module, half_life: float, ramp: float = 0.05):
        super().__init__()
        self.half_life, self.ramp = half_life, ramp
        for index, parameter in enumerate(source.parameters()):
            self.register_buffer(f"average{index}", parameter.detach().clone())

    @torch.no_grad()
    def update(self, source: nn.Module, batch: int, images: int) -> None:
        """Average in the parameters after an update with `batch` images; `images` is the total so far."""
        beta = decay(min(self.half_life, self.ramp * images), batch)
        torch._foreach_lerp_(list(self.buffers()), list(source.parameters()), 1 - beta)

    @torch.no_grad()
    def swap(self, source: nn.Module) -> None:
        """Exchange averages and parameters in place."""
        own, theirs = list(self.buffers()), list(source.parameters())
        kept = [average.clone() for average in own]
        torch._foreach_copy_(own, theirs)
        torch._foreach_copy_(theirs, kept)
