"""Search for the latent codes whose decoded images come nearest to given ones."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models import deadline

PULL = 1e-3  # of a drawn code towards the length that the prior gives it


def descend(
    start: Tensor, errors: Callable[[Tensor], Tensor], pace_of: tuple[int, float], pull: float = PULL
) -> Tensor:
    """The latents (b, d) with the least of `errors` (b,) met on a descent by Adam from `start`, each row by itself.

    `pace_of` are the steps and the greatest step size; `pull` weighs how far the length of a row is from that of a
    standard normal one.
    """
    (steps, rate), latents, best = pace_of, start.clone().requires_grad_(), start.clone()
    least = torch.full((len(start),), math.inf, device=start.device)
    optimiser = torch.optim.Adam([latents], betas=(0.9, 0.999))
    for step in range(steps + 1):
        deadline.check()
        found = errors(latents)
        with torch.no_grad():
            better = found < least
            least, best = torch.where(better, found, least), torch.where(better[:, None], latents, best)
        if step == steps:
            break
        loss = found.sum() + (pull * (latents.square().mean(1).sqrt() - 1).square().sum() if pull else 0.0)
        (latents.grad,) = torch.autograd.grad(loss, latents)
        optimiser.param_groups[0]["lr"] = rate * pace(step / steps)
        optimiser.step()
    return best


def pace(progress: float) -> float:
    """Factor on the step size: up in the first twentieth, down a cosine in the last quarter (Karras et al. 2020)."""
    return min(1.0, (progress + 0.01) / 0.05, 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - progress) / 0.25)))


def distance(made: Tensor, images: Tensor) -> Tensor:
    """(b,): mean squared error at full, half and quarter size, so that what lies beside its place is felt as well."""
    total = 0.0
    for _ in range(3):
        total = total + (made - images).square().flatten(1).mean(1)
        if min(made.shape[2:]) < 4:
            break
        made, images = F.avg_pool2d(made, 2), F.avg_pool2d(images, 2)
    return total
