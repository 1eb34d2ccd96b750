"""An exponential moving average of a network, counted in images: the copy that serves."""

import copy

import torch
from torch import nn


class Ema(nn.Module):
    """A frozen copy of `source` whose parameters follow it with a half-life in images; buffers are copied.

    beta = 0.5 ** (batch / min(half_life, ramp * images_seen)), as in StyleGAN2-ADA (Karras et al. 2020).
    """

    def __init__(self, source: nn.Module, half_life: float = 10_000, ramp: float | None = 0.05):
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False).eval()
        self.half_life, self.ramp = half_life, ramp

    def train(self, mode: bool = True) -> "Ema":
        """The copy is only ever evaluated, whatever the rest of the model does."""
        return super().train(False)

    @torch.no_grad()
    def update(self, source: nn.Module, batch: int, images: int) -> None:
        """Move towards `source` after `batch` images, `images` in all so far."""
        half_life = min(self.half_life, self.ramp * images) if self.ramp else self.half_life
        beta = 0.5 ** (batch / max(half_life, 1e-8))
        mine, theirs = list(self.module.parameters()), list(source.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - beta)
        for own, other in zip(self.module.buffers(), source.buffers(), strict=True):
            own.copy_(other)

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return self.module(*inputs, **named)
