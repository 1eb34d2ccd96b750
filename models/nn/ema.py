"""Exponential moving average of a network, with a half-life in images."""

import copy

import torch
from torch import nn


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
        beta = 0.5 ** (batch / max(half_life, 1e-8))
        own, theirs = list(self.module.parameters()), list(source.parameters())
        torch._foreach_lerp_(own, theirs, 1 - beta)
        for buffer, other in zip(self.module.buffers(), source.buffers(), strict=True):
            buffer.copy_(other)

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return self.module(*inputs, **named)
