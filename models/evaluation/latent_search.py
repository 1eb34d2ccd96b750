"""Gradient descent on latents towards given images (projection)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models import deadline

PULL = 1e-3  # weight of (|z| / sqrt(d) - 1)^2, which keeps a code near the prior


def descend(
    start: Tensor, errors: Callable[[Tensor], Tensor], schedule: tuple[int, float], pull: float = PULL
) -> Tensor:
    """Minimise `errors` (b,) by Adam from latents `start` (b, d), each row by itself; returns the best of each row.

    `schedule` is the number of steps and the largest step size.
    """
    (steps, rate), latents, best = schedule, start.clone().requires_grad_(), start.clone()
    least = torch.full((len(start),), math.inf, device=start.device)
    optimiser = torch.optim.Adam([latents], betas=(0.9, 0.999))
    for step in range(steps + 1):
        deadline.check()
        error = errors(latents)
        with torch.no_grad():
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better[:, None], latents, best)
        if step == steps:
            break
        loss = error.sum() + (pull * (latents.square().mean(1).sqrt() - 1).square().sum() if pull else 0.0)
        (latents.grad,) = torch.autograd.grad(loss, latents)
        optimiser.param_groups[0]["lr"] = rate * lr_factor(step / steps)
        optimiser.step()
    return best


def lr_factor(progress: float) -> float:
    """Factor on the step size: linear warm-up to 0.05, cosine to zero from 0.75 (Karras et al. 2020)."""
    return min(1.0, (progress + 0.01) / 0.05, 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - progress) / 0.25)))


def distance(decoded: Tensor, images: Tensor) -> Tensor:
    """(b,): sum of the mean squared errors at full, half and quarter size, so that shifts have a gradient as well."""
    total = 0.0
    for _ in range(3):
        total = total + (decoded - images).square().flatten(1).mean(1)
        if min(decoded.shape[2:]) < 4:
            break
        decoded, images = F.avg_pool2d(decoded, 2), F.avg_pool2d(images, 2)
    return total
