"""Total variation minimisation (Rudin et al. 1992; as a defence Guo et al. 2018): denoising that keeps edges."""

import torch
from pydantic import Field
from torch import Tensor

from models import deadline
from models.attacks.core.rng import RowRNG
from models.defences import stage as core

STEP = 0.25
"""Step size of the dual iteration, the largest that converges in practice (Chambolle 2004)."""


class Config(core.Config):
    weight: float = Field(0.1, gt=0, le=10, description="Weight of the total variation; larger values smooth more.")
    steps: int = Field(30, ge=1, le=500, description="Number of iterations.")


class TotalVariation(core.Defence):
    """Minimises ||u - x||^2 / 2 + weight * TV(u) over u by Chambolle's dual iteration. The gradient is exact."""

    name = "tv"
    summary = "Smooths the image but keeps its edges (total variation minimisation)."
    differentiable = True
    Config = Config

    def apply_to(self, images: Tensor, rng: RowRNG) -> Tensor:
        dual = torch.zeros(2, *images.shape, dtype=images.dtype, device=images.device)
        for _ in range(self.config.steps):
            deadline.check()
            # g = grad(div p - x / weight), p <- (p + tau g) / (1 + tau |g|)
            g = gradient(divergence(dual) - images / self.config.weight)
            size = (g.square().sum(0) + 1e-12).sqrt()  # sqrt has no gradient at 0
            dual = (dual + STEP * g) / (1 + STEP * size)
        return (images - self.config.weight * divergence(dual)).clamp(0, 1)


def gradient(values: Tensor) -> Tensor:
    """(2, b, c, h, w): forward differences down and to the right, 0 at the far border."""
    down, right = torch.zeros_like(values), torch.zeros_like(values)
    down[:, :, :-1] = values[:, :, 1:] - values[:, :, :-1]
    right[:, :, :, :-1] = values[:, :, :, 1:] - values[:, :, :, :-1]
    return torch.stack([down, right])


def divergence(field: Tensor) -> Tensor:
    """Minus the adjoint of `gradient`."""
    down, right = field[0][:, :, :-1], field[1][:, :, :, :-1]
    zero_row, zero_column = torch.zeros_like(field[0][:, :, :1]), torch.zeros_like(field[1][:, :, :, :1])
    rows = torch.cat([down, zero_row], 2) - torch.cat([zero_row, down], 2)
    return rows + torch.cat([right, zero_column], 3) - torch.cat([zero_column, right], 3)
